"""Other images with masks next to the ones found -> further places of the same data set."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from unet.data.image_io import read_header
from unet.inspection.discovery import Pairing, read_each
from unet.inspection.held_out import split_of
from unet.inspection.mask_files import (
    are_label_images,
    join_bands,
    rank_masks,
    rank_names,
    read_values,
    some_masks,
)
from unet.inspection.mask_values import Value, count_values, find_classes

_FEWEST = 2
"""Pairs of a place; a single one may be a figure and its drawing."""


def find_other_places(
    best: Pairing, candidates: Sequence[Pairing]
) -> tuple[list[Pairing], list[Pairing]]:
    """Find pairs of other files: those alike, and those with other values, bands or pixels.

    Copies of the images in another size are not alike, as they would be in training and validation.
    """
    alike, unlike = list[Pairing](), list[Pairing]()
    used = {path for both in best.files.values() for path in both}
    for one in sorted(candidates, key=lambda one: (len(one.files), rank_names(one)), reverse=True):
        files = {path for both in one.files.values() for path in both}
        is_held_out = split_of(one.images) in ("test", "val") and split_of(best.images) == ""
        if len(one.files) < _FEWEST or is_held_out or used & files:
            continue
        same = [other for other in candidates if one.images == other.images]
        same = [
            other
            for other in same
            if len(other.files) == len(one.files)
            and not any(mask in used for _, mask in other.files.values())
        ]
        place = max(same, key=rank_masks) if len(same) > 1 else one
        used |= {path for both in place.files.values() for path in both}
        (alike if _are_alike(best, place) else unlike).append(place)
    return alike, unlike


def _are_alike(one: Pairing, other: Pairing) -> bool:
    bands, values = [], list[set[Value | str]]()
    for pairing in (one, other):
        some = some_masks(pairing)
        headers = read_each(read_header, [image for image, _, _ in some])
        bands.append({(header.bands - header.alpha, header.dtype) for header in headers})
        values.append(_find_values([(mask, page) for _, mask, page in some]))
    same_values = 2 * len(values[0] & values[1]) > min(map(len, values))
    return bool(bands[0] & bands[1]) and same_values and not _are_copies(one, other)


def _find_values(masks: Sequence[tuple[str, int | None]]) -> set[Value | str]:
    """The values of classes, without those of a figure among the masks."""
    read = [*read_each(lambda mask: (mask, read_values(mask)), masks)]
    if not read:
        return set()
    usual = Counter(values.ndim for _, values in read).most_common(1)[0][0]
    read = [one for one in read if one[1].ndim == usual]
    if are_label_images(values for _, values in read):
        return {"numbers"}
    counts = count_values(mask for mask, _ in read)
    try:
        return {value for group in find_classes(counts).values.values() for value in group}
    except ValueError:
        return {*counts.pixels}


def _are_copies(one: Pairing, other: Pairing) -> bool:
    """Whether most masks of the same stem are equal when they are resized, except for some edges.

    Pixels count where one of the two has another value than most of its pixels.
    """
    equal = []
    stems = sorted(one.files.keys() & other.files.keys())
    for stem in stems[:: max(1, len(stems) // 5)]:
        first, second = (_shrink(some.files[stem][1]) for some in (one, other))
        values, counts = np.unique(first, return_counts=True)
        usual = values[counts.argmax()]
        counting = (first != usual) | (second != usual)
        equal.append(bool(np.mean((first == second)[counting]) > 0.7) if counting.any() else True)
    return len(equal) > 0 and bool(np.mean(equal) > 0.5)


def _shrink(mask: str) -> np.ndarray:
    """The values of a mask at 32 x 32 places."""
    values = join_bands(next(iter(read_each(read_values, [(mask, None)])), np.zeros((1, 1))))
    rows, columns = (((np.arange(32) + 0.5) * size / 32).astype(int) for size in values.shape[:2])
    shrunk: np.ndarray = values[rows[:, None], columns]
    return shrunk
