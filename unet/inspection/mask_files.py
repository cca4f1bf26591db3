"""Several masks of the same images -> those of classes, label images, or a mask for each class."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from operator import eq
from typing import NamedTuple

import numpy as np

from unet.data.classes import is_interior
from unet.data.image_io import read_header
from unet.data.masks import read_codes
from unet.inspection.discovery import Pairing, read_each
from unet.inspection.mask_values import MANY_OBJECTS, count_values, find_places

_MASK = re.compile(r"mask|label|annot|seg|semantic|(?<![a-z])gt|ground|truth", re.IGNORECASE)
_CLASSES = re.compile(r"semantic|class|categor|type", re.IGNORECASE)
_OBJECTS = re.compile(r"instance|object|panoptic", re.IGNORECASE)
_DERIVED = re.compile(
    r"overlay|blend|visual|preview|distance|bound|border|contour|edge|cent(er|re|roid)|weight|"
    r"skelet|depth|disparity|(?<![a-z])dsm|ndvi|evi(?![a-z])|(?<![a-z])(nir|right|heat)(?![a-z])",
    re.IGNORECASE,
)
_SECOND = re.compile(
    r"(annotat\w*?|expert|rater|observer|reader|grader|manual|masks?|labels?|gt|version|v)"
    r"[-_ ]?(\d*[2-9]|[b-f])(?![0-9a-z])|2nd|second|3rd|third",
    re.IGNORECASE,
)
"""Names of masks, of classes, of objects, of what is made from images or masks, and of a second
annotator."""

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
        drawn_of = dict(masks.files.values())
        if not labels.keys() >= drawn_of.keys() or drawn_of.items() <= labels.items():
            continue  # labels of other images, or the masks themselves
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


def join_bands(mask: np.ndarray) -> np.ndarray:
    """One number (H, W) for each value or colour of a mask."""
    return mask if mask.ndim == 2 else mask.astype(np.int64) @ (1 << 16) ** np.arange(mask.shape[2])


def are_label_images(masks: Iterable[np.ndarray]) -> bool:
    """Whether masks number their objects: many numbers, each in one place.

    Few are enough in files of more than 8 bits, if each mask has 1, 2, 3 ..., or numbers above
    65535, and not all masks have the same ones.
    """
    verdicts, sets = [], set[tuple[int, ...]]()
    for mask in masks:
        if mask.ndim != 2 or (mask.dtype.kind == "f" and not (mask == np.round(mask)).all()):
            return False
        mask = mask.astype(np.int64) if mask.dtype.kind in "bf" else mask
        numbers, counts = np.unique(mask[mask > 0], return_counts=True)
        if not len(numbers):
            continue
        sets.add(tuple(numbers.tolist()))
        in_one_place = min(_in_one_place(one, numbers) for one in (mask, mask.T))
        many = len(numbers) > MANY_OBJECTS and counts.max() < 0.5 * counts.sum()
        few = mask.dtype.itemsize > 1 and (numbers[-1] == len(numbers) or numbers[0] > 65535)
        interior, _, edge = find_places(mask)
        on_edges = np.setdiff1d(mask[edge], mask[interior])
        is_soft = 2 * len(on_edges) > len(numbers)
        verdicts.append((in_one_place > 0.8, many and not is_soft, few and not is_soft))
    if not verdicts:
        return False
    single, many_numbers, few_numbers = np.mean(verdicts, axis=0)
    are_few = few_numbers == 1 and (len(sets) > 1 or len(verdicts) == 1)
    return bool(single > 0.8 and (many_numbers > 0.1 or are_few))


def may_number_objects(masks: Iterable[np.ndarray]) -> bool:
    """Whether most masks have two or more of the numbers 1, 2, 3 ..., each in one place."""
    verdicts = []
    for mask in masks:
        numbers = np.unique(mask[mask > 0])
        are_few = mask.ndim == 2 and len(numbers) > 1 and numbers[-1] == len(numbers)
        verdicts.append(
            are_few and min(_in_one_place(one, numbers) for one in (mask, mask.T)) > 0.9
        )
    return len(verdicts) > 0 and bool(np.mean(verdicts) > 0.5)


def _in_one_place(mask: np.ndarray, numbers: np.ndarray) -> float:
    """The lower fraction: of the runs that are alone in their row, of numbers in adjacent rows.

    Smoothed or JPEG edges have many runs in a row, classes rows without them between others.
    """
    starts = np.diff(mask.astype(np.int64), axis=1, prepend=0) != 0
    rows, columns = np.nonzero(starts & (mask > 0))
    # Sorted by number, then by row.
    runs = np.searchsorted(numbers, mask[rows, columns]) * (len(mask) + 1) + rows
    single = np.unique(runs)
    number, steps = single // (len(mask) + 1), np.diff(single)
    apart = number[1:][(np.diff(number) == 0) & (steps > 1)]
    return min(len(single) / len(runs), 1 - len(np.unique(apart)) / len(numbers))


class MaskRank(NamedTuple):
    """Masks of the same images with the larger rank are more likely those of classes."""

    changes: bool  # between images, unlike a field of view
    fills: bool  # areas or lines, not single points
    names_classes: int  # above 0 if named like classes, below like objects
    holds_classes: bool  # not instances
    is_named: bool  # like masks
    is_first: bool  # not named like those of a second annotator
    is_original: bool  # not named like what is made from other masks
    near: int  # the number of folders that it shares with the images
    has_ids: bool  # of several classes, not colours
    classes: int  # number of classes


def rank_masks(pairing: Pairing) -> MaskRank:
    """Rank masks by their pixels and names, for masks of the same images."""
    masks = [(mask, page) for _, mask, page in some_masks(pairing)]
    drawn = [*read_each(read_values, masks)]
    changes = [
        one.shape != other.shape or np.sum(one != other) > 0.1 * np.sum((one > 0) | (other > 0))
        for one, other in pairwise(drawn)
    ]
    values, name = count_values(masks), pairing.masks
    enough = 0.002 * values.pixels.total()
    classes = sum(count >= enough for count in values.pixels.values())
    return MaskRank(
        changes=not changes or any(changes),
        fills=any(map(_fills, drawn)),
        names_classes=bool(_CLASSES.search(name)) - bool(_OBJECTS.search(name)),
        holds_classes=not (are_label_images(drawn) or may_number_objects(drawn)),
        is_named=bool(_MASK.search(name)),
        is_first=not _SECOND.search(name),
        is_original=not _DERIVED.search(name),
        near=sum(map(eq, pairing.images.split("/"), name.split("/"))),
        has_ids=classes > 2 and all(one.ndim == 2 for one in drawn),
        classes=classes,
    )


def _fills(mask: np.ndarray) -> bool:
    """Whether most pixels of a class have a neighbour of the same value."""
    codes = join_bands(mask)
    padded = np.pad(codes, 1)
    inside = padded[1:-1, 1:-1] > 0
    alike = [
        codes == padded[1 + down : len(padded) - 1 + down, 1 + right : padded.shape[1] - 1 + right]
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))
    ]
    return bool(2 * np.count_nonzero(np.any(alike, axis=0) & inside) > np.count_nonzero(inside))


def rank_names(pairing: Pairing) -> tuple[bool, bool]:
    """Whether masks are named like masks, and images not like what is made from images."""
    return bool(_MASK.search(pairing.masks)), not _DERIVED.search(pairing.images)


def find_class_masks(same: Sequence[Pairing], best: Pairing) -> dict[str, Pairing]:
    """Find one mask for each class by the names of the classes; empty if there are none.

    They are binary, differ between images and do not overlap; those with soft edges, as JPEG makes
    them, at most along these. Of several, those of `best` count.
    """
    mask_of = {one.masks: dict(one.files.values()) for one in same}
    some = [
        (image, page)
        for image, _, page in some_masks(best)
        if all(image in masks for masks in mask_of.values())
    ]
    drawn: dict[str, list[np.ndarray]] = {}
    soft = set[str]()
    for pattern, masks in mask_of.items():
        read = [*read_each(read_values, [(masks[image], page) for image, page in some])]
        inside = [
            _inside(mask, masks[image].lower().endswith((".jpg", ".jpeg")))
            for mask, (image, _) in zip(read, some, strict=False)
        ]
        changes = any(a.shape != b.shape or (a != b).any() for a, b in pairwise(inside))
        if len(inside) == len(some) and changes:
            drawn[pattern] = inside
            soft |= {pattern} if any(map(has_soft_edges, read)) else set()
    if best.masks not in drawn:
        return {}
    apart = [best.masks]
    for pattern, inside in drawn.items():
        if all(_are_apart(inside, drawn[one], bool({pattern, one} & soft)) for one in apart):
            apart.append(pattern)
    if len(apart) < 2:
        return {}
    by_pattern = {one.masks: one for one in same}
    return {name: by_pattern[masks] for name, masks in _name_classes(sorted(apart)).items()}


def _inside(mask: np.ndarray, is_jpeg: bool) -> np.ndarray:
    """The class in a binary mask; an empty array for other masks."""
    if mask.ndim == 3 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    if mask.ndim == 2 and mask.max() in (0, 1, 255, 65535) and not has_soft_edges(mask):
        return mask > 0
    if mask.ndim == 2 and mask.dtype == np.uint8:
        # JPEG changes whole areas by a little; soft edges fill none.
        between = (mask > 40) & (mask < 215) if is_jpeg else (mask > 0) & (mask < 255)
        inside = np.count_nonzero(between & is_interior(mask))
        if inside <= 0.05 * np.count_nonzero(between) and between.mean() < 0.2:
            return mask > 127
    return np.zeros((0, 0), bool)


def has_soft_edges(mask: np.ndarray) -> bool:
    """Whether a mask has other values than 0 and its highest."""
    return bool(((mask != 0) & (mask != mask.max())).any())


def _are_apart(ones: Sequence[np.ndarray], others: Sequence[np.ndarray], are_soft: bool) -> bool:
    # Single masks may be of another size or kind, as those of a figure are.
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one.size]
    alike = [(one, other) for one, other in pairs if one.shape == other.shape]
    overlaps = [one & other for one, other in alike]
    common = sum(np.count_nonzero(one & is_interior(one) if are_soft else one) for one in overlaps)
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
