"""Shapes -> class ids and numbered objects of an image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from unet.data.annotations.regions import Filled, Size
from unet.data.annotations.source import Shape
from unet.data.classes import IGNORE_INDEX
from unet.runtime.text import plural

Order = Literal["file", "area"]


@dataclass(kw_only=True)
class Painted:
    """An image's class ids (H, W) uint8, and its objects, numbered from 1, (H, W) int32."""

    ids: np.ndarray
    numbers: np.ndarray


@dataclass(kw_only=True)
class Tally:
    """What happened to the shapes of all images.

    Args:
        objects: number of objects of each class.
        left_out: images, and what has no pixel in them.
        overlapping: number of shapes that cover pixels of others.
        covered: number of these pixels.
        hidden: images of objects that others cover wholly.
        cut: images of shapes that reach beyond them.
    """

    objects: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    overlapping: int = 0
    covered: int = 0
    hidden: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def notes(self, order: Order) -> list[str]:
        """Say what happened, in sentences."""
        notes = []
        if self.overlapping:
            way = {
                "file": "later ones of the file are on top; order=area puts smaller ones on top",
                "area": "smaller ones are on top",
            }[order]
            notes.append(
                f"{plural(self.overlapping, 'shape')} and others overlap, in "
                f"{plural(self.covered, 'pixel')}: {way}"
            )
        if self.hidden:
            notes.append(
                f"{plural(len(self.hidden), 'object')} wholly below others, such as in "
                f"{self.hidden[0]}"
            )
        if self.cut:
            notes.append(
                f"{plural(len(self.cut), 'shape')} cut off at the border of the image, such as in "
                f"{self.cut[0]}"
            )
        return notes


def paint(
    shapes: Sequence[Shape],
    size: Size,
    classes: Mapping[str, int],
    order: Order,
    tally: Tally,
    image: str,
) -> Painted:
    """Paint the shapes of an image; later ones, and those of a higher level, are on top.

    Args:
        shapes: in the order of the file.
        size: of the image.
        classes: names and ids; shapes of class 0 and ignored ones are no objects.
        order: which shapes of a level are on top: later or smaller ones.
        tally: counts what happens.
        image: its name, for messages.

    Raises:
        ValueError: if a shape does not fit the image.
    """
    painted = Painted(ids=np.zeros(size, np.uint8), numbers=np.zeros(size, np.int32))
    filled = [(shape, filled) for shape in shapes if (filled := _fill(shape, size, tally, image))]
    if order == "area":
        filled.sort(key=lambda one: -np.count_nonzero(one[1].mask))
    filled.sort(key=lambda one: one[0].level)
    objects: dict[object, tuple[int, str]] = {}  # number and class of each
    for shape, pixels in filled:
        class_id, number = classes[shape.name], 0
        if class_id not in (0, IGNORE_INDEX):
            key = object() if shape.group is None else shape.group
            number, _ = objects.setdefault(key, (len(objects) + 1, shape.name))
        numbers = pixels.of(painted.numbers)
        below = numbers[pixels.mask]
        if count := np.count_nonzero((below > 0) & (below != number)):
            tally.overlapping += 1
            tally.covered += int(count)
        numbers[pixels.mask] = number
        pixels.of(painted.ids)[pixels.mask] = class_id
    tally.objects.update(name for _, name in objects.values())
    is_visible = np.bincount(painted.numbers.ravel(), minlength=len(objects) + 1) > 0
    is_visible[0] = False
    tally.hidden += [image] * (len(objects) - int(is_visible.sum()))
    painted.numbers = (is_visible.cumsum() * is_visible).astype(np.int32)[painted.numbers]
    return painted


def _fill(shape: Shape, size: Size, tally: Tally, image: str) -> Filled | None:
    """Return the pixels of a shape; count it if it has none in the image."""
    try:
        filled = shape.region.fill(size)
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error
    if not filled.mask.any():
        tally.left_out.append((image, f'a region "{shape.name}" without a pixel in the image'))
        return None
    if filled.is_cut:
        tally.cut.append(image)
    return filled
