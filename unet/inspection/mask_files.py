"""Several masks of the same images -> those of classes, label images, or a mask for each class."""

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from operator import eq

import numpy as np

from unet.data.image_io import read_header
from unet.data.masks import read_codes
from unet.inspection.discovery import Pairing, read_each
from unet.inspection.mask_values import are_label_images, count_values

_MOST_MASKS = 10
"""Masks of a pattern that are read, spread over all."""


def some_masks(pairing: Pairing) -> list[tuple[str, str, int | None]]:
    """Return image, mask and page of the mask, of some masks spread over all."""
    files = [pairing.files[stem] for stem in sorted(pairing.files)]
    some = files[:: max(1, len(files) // _MOST_MASKS)]
    pages = read_each(lambda both: (*both, 0 if read_header(both[1]).pages > 1 else None), some)
    return list(pages)


def find_label_images(pairings: Sequence[Pairing], masks: Pairing) -> str | None:
    """Return the pattern of files that number the objects of masks; None if there are none."""
    some = some_masks(masks)
    drawn = [*read_each(read_values, [(mask, page) for _, mask, page in some])]
    for one in pairings:
        labels = dict(one.files.values())
        if one.masks == masks.masks or not labels.keys() >= dict(masks.files.values()).keys():
            continue
        numbers = [*read_each(read_values, [(labels[image], page) for image, _, page in some])]
        alike = len(drawn) == len(numbers) and [
            mask.shape == objects.shape and np.array_equal(mask > 0, objects > 0)
            for mask, objects in zip(drawn, numbers, strict=True)
        ]
        if alike and np.mean(alike) > 0.8 and are_label_images(numbers):
            return one.masks
    return masks.masks if are_label_images(drawn) else None


def read_values(mask: tuple[str, int | None]) -> np.ndarray:
    """Read the values of a mask (file and page) without any conversion."""
    return read_codes(*mask)[1]


def rank_masks(pairing: Pairing) -> tuple[bool, bool, bool, int, int]:
    """Return a sort key for masks of the same images: likely masks of classes rank highest.

    They differ between images, unlike a field of view; they hold classes, not instances; they are
    named like masks; their path is similar to that of the images; they hold many classes.
    """
    masks = [(mask, page) for _, mask, page in some_masks(pairing)]
    drawn = [*read_each(read_values, masks)]
    changes = [
        one.shape != other.shape or np.sum(one != other) > 0.1 * np.sum((one > 0) | (other > 0))
        for one, other in pairwise(drawn)
    ]
    values = count_values(masks)
    is_named = bool(re.search("mask|label|annot|seg", pairing.masks, re.IGNORECASE))
    near = sum(map(eq, pairing.images.split("/"), pairing.masks.split("/")))
    enough = 0.002 * values.pixels.total()
    classes = sum(count >= enough for count in values.pixels.values())
    return not changes or any(changes), values.most <= 40, is_named, near, classes


def find_class_masks(same: Sequence[Pairing], best: Pairing) -> dict[str, Pairing]:
    """Find one mask for each class by the names of the classes; empty if there are none.

    They are binary, differ between images and do not overlap. Of several, those of `best` count.
    """
    mask_of = {one.masks: dict(one.files.values()) for one in same}
    some = [
        (image, page)
        for image, _, page in some_masks(best)
        if all(image in masks for masks in mask_of.values())
    ]
    drawn: dict[str, list[np.ndarray]] = {}
    for pattern, masks in mask_of.items():
        read = [*read_each(read_values, [(masks[image], page) for image, page in some])]
        inside = [mask > 0 if _is_binary(mask) else np.zeros((0, 0), bool) for mask in read]
        changes = any(a.shape != b.shape or (a != b).any() for a, b in pairwise(inside))
        if len(inside) == len(some) and changes:
            drawn[pattern] = inside
    if best.masks not in drawn:
        return {}
    apart = [best.masks]
    for pattern, inside in drawn.items():
        if all(_are_apart(inside, drawn[one]) for one in apart):
            apart.append(pattern)
    if len(apart) < 2:
        return {}
    by_pattern = {one.masks: one for one in same}
    return {name: by_pattern[masks] for name, masks in _name_classes(sorted(apart)).items()}


def _is_binary(mask: np.ndarray) -> bool:
    return (
        mask.ndim == 2
        and mask.max() in (0, 1, 255, 65535)
        and bool(np.isin(mask, (0, mask.max())).all())
    )


def _are_apart(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    # Single masks may be of another size or kind, as those of a figure are.
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one.size]
    alike = [(one, other) for one, other in pairs if one.shape == other.shape]
    common = sum(np.count_nonzero(one & other) for one, other in alike)
    filled = any(one.any() and other.any() for one, other in alike)
    return common == 0 and filled and len(alike) >= min(0.8 * len(ones), len(ones) - 1)


def _name_classes(patterns: Sequence[str]) -> dict[str, str]:
    """Classes by the words in which patterns differ."""
    words = [re.findall(r"\{\w+\}|[^\W_]+|[\W_]", pattern) for pattern in patterns]
    start = _count_common(words)
    end = _count_common([one[: start - len(one) - 1 : -1] for one in words])
    names = ["".join(one[start : len(one) - end]).strip("_-./ ") for one in words]
    if not all(re.fullmatch(r"[\w.-][\w. -]*", name) for name in names) or "background" in names:
        names = [f"class_{i}" for i in range(1, len(names) + 1)]
    return dict(zip(names, patterns, strict=True))


def _count_common(words: Sequence[Sequence[str]]) -> int:
    """The number of words at the start that are the same in all."""
    return len([*takewhile(lambda some: len({*some}) == 1, zip(*words, strict=False))])
