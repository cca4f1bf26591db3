"""What the readers of annotation files have in common: their result, and checked values."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unet.data.annotations.regions import Polygon, Region, Size
from unet.data.classes import Colour
from unet.runtime.text import shorten

T = TypeVar("T")

OBJECT = "object"
"""The class of shapes that have none."""

CLASSES = "unet_classes"
"""A member of our own in formats without a list of classes: their names in order."""

SPLITS = {"val": "val", "valid": "val", "validation": "val", "test": "test"}

_FARTHEST = 1e6  # pixels: coordinates beyond are no place in an image

_AGAIN = "export the annotations again"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A region of one class.

    Args:
        name: of its class.
        region: its pixels.
        level: shapes of higher levels are on top of others.
        group: shapes of an image with the same group are one object; None for one of its own.
    """

    name: str
    region: Region
    level: float = 0
    group: object = None


@dataclass(eq=False)
class Entry:
    """The annotation of an image.

    Args:
        image: the name or path that the annotation gives it, perhaps without ending.
        place: the file of the annotation, for messages.
        size: (height, width) that the annotation was made for; None if it does not say.
        shapes: in the order of the file.
        locate: makes the shapes of an image's path where they depend on it.
        everywhere: whether it is of all images if none has its name, as a map is.
        other: the name that it has if no file has the first.
    """

    image: str
    place: str
    size: Size | None = None
    shapes: list[Shape] = field(default_factory=list)
    locate: Callable[[Path], list[Shape]] | None = None
    everywhere: bool = False
    other: str = ""


@dataclass(kw_only=True)
class Annotations:
    """What a file or folder of annotations holds.

    Args:
        entries: one for each image.
        classes: names of all classes, in order, and their colours.
        left_out: places, and what is not read of them.
        notes: on what was read in a certain way.
        splits: parts of image paths, and their split, such as val.
        all_listed: whether the annotator has seen images without entry, too.
    """

    entries: list[Entry] = field(default_factory=list)
    classes: dict[str, Colour | None] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    all_listed: bool = False

    def extend(self, other: "Annotations") -> None:
        """Add what another file holds."""
        self.entries += other.entries
        for name, colour in other.classes.items():
            self.classes[name] = self.classes.get(name) or colour
        self.left_out += other.left_out
        self.notes |= other.notes

    def add_polygon(
        self, entry: Entry, name: str, rings: Iterable[np.ndarray], **options: Any
    ) -> None:
        """Add a polygon with holes to an entry, or say why it is left out."""
        outline, *holes = rings
        if len(outline) < 3:
            self.left_out.append((entry.image, f'a polygon "{name}" with fewer than 3 points'))
            return
        unit = options.pop("unit", 1.0)
        region = Polygon(((outline, *(hole for hole in holes if len(hole) > 2)),), unit)
        self.add(entry, name, region, **options)

    def add(self, entry: Entry, name: str, region: Region, **options: Any) -> None:
        """Add a region of a class to an entry."""
        self.classes.setdefault(name, None)
        entry.shapes.append(Shape(name=name, region=region, **options))


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        reason = shorten(" ".join(str(error).split()))
        raise ValueError(
            f"{path}: cannot be read as JSON ({reason}), perhaps it is cut off; {_AGAIN}"
        ) from error


def listed_classes(data: Any) -> dict[str, Colour | None]:
    """Return the classes that a file of our own lists."""
    names = data.get(CLASSES, []) if isinstance(data, dict) else []
    return {name: None for name in names if isinstance(name, str)}


def wrong(where: str, what: str, got: object, expected: str) -> ValueError:
    """Return the error for a value of a wrong type."""
    return ValueError(f"{where}: got {what} {shorten(repr(got))}, expected {expected}; {_AGAIN}")


def get(data: Any, key: str, kind: type[T], where: str) -> T:
    """Return the value of a key of a JSON object.

    Raises:
        ValueError: if it is missing or of another type.
    """
    if not isinstance(data, dict):
        raise wrong(where, "an entry", data, f"an object with {key}")
    value = data.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
        raise wrong(where, key, value, words.get(kind, kind.__name__))
    return value


def get_size(data: Any, height: str, width: str, where: str) -> Size | None:
    """Return the size that two keys give; None if one is missing."""
    values = [data.get(height), data.get(width)]
    if None in values:
        return None
    rows, columns = numbers(values, "height and width", where).tolist()
    if not (rows >= 1 and columns >= 1):
        raise wrong(where, "height and width", values, "at least 1 pixel")
    return round(rows), round(columns)


def numbers(values: Any, what: str, where: str, highest: float = _FARTHEST) -> np.ndarray:
    """Convert a list of numbers to an array (N,) of float64.

    Raises:
        ValueError: if it is none, or a number is beyond the highest or its negative.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise wrong(where, what, values, "a list of numbers") from None
    if not isinstance(values, list) or array.ndim != 1:
        raise wrong(where, what, values, "a list of numbers")
    if not (np.abs(array) <= highest).all():  # NaN is none of them
        raise wrong(where, what, values, f"numbers up to {highest:,.0f}")
    return array


def counts(values: Any, what: str, where: str) -> np.ndarray:
    """Convert a list of whole numbers, none of them negative, to an array (N,) of int64.

    Raises:
        ValueError: if it is none.
    """
    array = numbers(values, what, where, 2.0**40)
    if (array < 0).any() or (array % 1).any():
        raise wrong(where, what, values, "whole numbers, 0 or more")
    return array.astype(np.int64)


def points(values: Any, where: str, highest: float = _FARTHEST) -> np.ndarray:
    """Convert a list of pairs x, y to an array (N, 2); errors: see `numbers`."""
    if not isinstance(values, list) or any(
        not isinstance(one, list) or len(one) < 2 for one in values
    ):
        raise wrong(where, "points", values, "a list of pairs [x, y]")
    flat = [number for one in values for number in one[:2]]
    return numbers(flat, "points", where, highest).reshape(-1, 2)


def box_ring(left: float, top: float, width: float, height: float) -> np.ndarray:
    """Return the corners (4, 2) of a box."""
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    ring: np.ndarray = np.add(corners, (left, top))
    return ring


def turned(ring: np.ndarray, about: np.ndarray, angle: float) -> np.ndarray:
    """Turn points (N, 2) clockwise about a point by an angle in degrees."""
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    if angle == 0:
        return ring
    result: np.ndarray = (ring - about) @ matrix + about
    return result
