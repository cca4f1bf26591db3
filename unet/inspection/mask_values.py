"""The values of masks without a config -> the classes that they seem to mean."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from unet.data.image_io import skip_unreadable
from unet.data.masks import read_codes

_MANY_OBJECTS = 10
"""A mask with more numbers than this likely numbers objects, not classes."""
_MANY_VALUES = 40
"""A mask with more values than this was smoothed or saved as JPEG."""

Value = int | tuple[int, ...]
"""A grey value or palette index, or a colour."""


class ValueCounts(NamedTuple):
    """The values of a set of masks."""

    pixels: Counter[Value]  # number of pixels of each value
    files: Counter[Value]  # number of masks with each value
    together: set[frozenset[Value]]  # pairs of values that occur in one mask
    most: int  # largest number of values in one mask


class FoundClasses(NamedTuple):
    """The classes that the values of masks seem to mean, by proposed names."""

    values: dict[str, list[Value]]
    fractions: dict[str, float]  # of the pixels
    ignore: list[Value]  # 255 above consecutive numbers, and `far`
    far: list[Value]  # stray values far from every class
    near: dict[Value, int]  # stray values close to a class, with their distance


def count_values(masks: Iterable[tuple[str, int | None]]) -> ValueCounts:
    """Count the values of masks (file and page); unreadable files are left out.

    Raises:
        ValueError: if a mask has values that are not whole numbers.
    """
    pixels: Counter[Value] = Counter()
    files: Counter[Value] = Counter()
    together: set[frozenset[Value]] = set()
    most = 0
    for counts in skip_unreadable(_count_in_mask, masks):
        pixels.update(counts)
        files.update(counts.keys())
        most = max(most, len(counts))
        if len(counts) <= _MANY_VALUES:
            together.update(map(frozenset, combinations(counts, 2)))
    if any(isinstance(value, tuple) for value in pixels):  # some masks of coloured ones are grey

        def colour(value: Value) -> Value:
            # In a mask of 1 bit, 1 is white.
            white = 255 if value == 1 else value
            return (white,) * 3 if isinstance(white, int) else white

        for counter in (pixels, files):
            for value in [value for value in counter if isinstance(value, int)]:
                counter[colour(value)] += counter.pop(value)
        together = {frozenset(map(colour, both)) for both in together}
    return ValueCounts(pixels, files, together, most)


def _count_in_mask(mask: tuple[str, int | None]) -> dict[Value, int]:
    """Value -> number of pixels; alpha is left out, and equal channels are one."""
    _, bands = read_codes(*mask)
    if bands.dtype.kind == "f" and not (bands == np.round(bands)).all():
        raise ValueError("masks: got fractions or NaN, expected whole numbers")
    if bands.ndim == 3 and (bands == bands[..., :1]).all():
        bands = bands[..., 0]
    if bands.ndim == 2:
        numbers, counts = np.unique(bands, return_counts=True)
        return {int(number): count for number, count in zip(numbers, counts.tolist(), strict=True)}
    codes, counts = np.unique(bands.astype(np.int64) @ [1 << 16, 1 << 8, 1], return_counts=True)
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    return dict(zip(colours, counts.tolist(), strict=True))


def are_label_images(masks: Iterable[np.ndarray]) -> bool:
    """Whether masks number their objects: many numbers, each in one place.

    Few numbers are enough in files of more than 8 bits, if they are 1, 2, 3 ...
    """
    verdicts = []
    for mask in masks:
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            return False
        numbers, counts = np.unique(mask[mask > 0], return_counts=True)
        if not len(numbers):
            continue
        # A number in one place has one run in each row; smoothed or JPEG edges have many runs.
        starts = np.diff(mask, axis=1, prepend=0) != 0
        rows, columns = np.nonzero(starts & (mask > 0))
        runs = np.stack((rows, mask[rows, columns]), axis=1)
        single = len(np.unique(runs, axis=0)) / len(runs)
        many = len(numbers) > _MANY_OBJECTS and counts.max() < 0.5 * counts.sum()
        consecutive = mask.dtype.itemsize > 1 and numbers[-1] == len(numbers)
        verdicts.append((single > 0.8, many or consecutive))
    if not verdicts:
        return False
    in_one_place, enough = np.mean(verdicts, axis=0)
    return bool(in_one_place > 0.8 and enough > 0.1)


def find_classes(values: ValueCounts) -> FoundClasses:
    """Find the classes that the values of masks mean; not for masks that number objects.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    total = values.pixels.total()
    fraction = {value: count / total for value, count in values.pixels.items()}
    if values.most > _MANY_VALUES:
        groups, ignore = [[value] for value in _find_peaks(fraction)], list[Value]()
    else:
        groups, ignore = _group_values(values, fraction)
    if not groups:
        raise ValueError(
            f"masks: got {values.most} values in one mask and none that stands out, expected those "
            "of classes; are these masks?"
        )
    if len(groups) < 2:
        raise ValueError(
            f"masks: got the value {groups[0][0]} nearly everywhere, expected several classes"
        )
    names = [
        f"class_{group[0] if isinstance(group[0], int) else i}" for i, group in enumerate(groups)
    ]
    fractions = [sum(fraction[value] for value in group) for group in groups]
    if groups[0] == [0] and fractions[0] == max(fractions):
        names[0] = "background"
        names[1:] = ["foreground"] if len(groups) == 2 else names[1:]
    known = [value for group in groups for value in group]
    # Only where classes are further apart does a small distance to one of them mean anything.
    gap = min(
        _distance(one, other)
        for group, others in combinations(groups, 2)
        for one, other in product(group, others)
    )
    distances = {
        stray: min(_distance(stray, value) for value in known)
        for stray in fraction
        if stray not in [*known, *ignore]
    }
    far = sorted(stray for stray, distance in distances.items() if 2 * distance >= gap)
    return FoundClasses(
        values=dict(zip(names, groups, strict=True)),
        fractions=dict(zip(names, fractions, strict=True)),
        ignore=[*ignore, *far[:20]],
        far=far,
        near={stray: distance for stray, distance in distances.items() if 2 * distance < gap},
    )


def _find_peaks(fraction: dict[Value, float]) -> list[Value]:
    """The values that nearly all others are close to; none if there are no such values."""
    bins: defaultdict[Value, list[Value]] = defaultdict(list)
    for value in fraction:
        coarse = value // 32 if isinstance(value, int) else tuple(band // 32 for band in value)
        bins[coarse].append(value)
    peaks: list[Value] = []
    for members in sorted(bins.values(), key=lambda some: -sum(fraction[one] for one in some)):
        highest = max(members, key=lambda one: fraction[one])
        if sum(fraction[one] for one in members) > 0.01 and all(
            _distance(highest, peak) > 40 for peak in peaks
        ):
            peaks.append(highest)
    far = sum(
        part for one, part in fraction.items() if all(_distance(one, peak) > 32 for peak in peaks)
    )
    return sorted(peaks) if far < 0.1 else []


def _group_values(
    values: ValueCounts, fraction: dict[Value, float]
) -> tuple[list[list[Value]], list[Value]]:
    """The values of each class, and those to be ignored."""
    frequent = sorted(
        value
        for value, part in fraction.items()
        if part >= 0.002 or (part >= 0.0002 and values.files[value] > 1)
    )
    # 255 above 0, 1, 2 ... mostly marks pixels without a label.
    ignore: list[Value] = []
    if len(frequent) > 3 and frequent[-2:] == [len(frequent) - 2, 255]:
        ignore = [frequent.pop()]
    groups: list[list[Value]] = []
    for value in frequent:
        # Close numbers that no mask has both of, such as 127 and 128, are one class.
        last = groups[-1][-1] if groups else None
        if (
            isinstance(value, int)
            and isinstance(last, int)
            and value - last <= 3
            and value > 20
            and not any(frozenset((value, one)) in values.together for one in groups[-1])
        ):
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups, ignore


def _distance(one: Value, other: Value) -> int:
    """The largest difference in any channel."""
    bands, others = ((value,) if isinstance(value, int) else value for value in (one, other))
    return max(abs(a - b) for a, b in zip(bands, others, strict=True))
