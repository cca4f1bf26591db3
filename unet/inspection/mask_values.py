"""The values of masks that nobody has described -> the classes that they seem to mean."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from unet.data.image_io import open_image, skip_unreadable

_MANY = 10
"""Numbers in an image that are hardly those of classes."""

Value = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ValueCounts:
    """What was found in masks: pixels and files of each value, and what occurs together."""

    pixels: Counter[Value]
    files: Counter[Value]
    together: set[frozenset[Value]]
    most: int
    """Values in one mask, at most."""


@dataclass(frozen=True, kw_only=True)
class FoundClasses:
    """What the values of masks seem to mean."""

    values: dict[str, list[Value]]
    """Of each class, by a name for it."""
    shares: dict[str, float]
    """Of the pixels."""
    ignore: list[Value]
    """What is no class: mostly 255, and values far from all classes."""
    far: list[Value]
    """Stray values that are far from all classes."""
    near: dict[Value, int]
    """Those that are near one, and how far from it."""


def count_values(masks: Iterable[tuple[str, int | None]]) -> ValueCounts:
    """Count the values of masks (file and page): grey values, palette indices, or colours."""
    pixels: Counter[Value] = Counter()
    files: Counter[Value] = Counter()
    together: set[frozenset[Value]] = set()
    most = 0
    for image in skip_unreadable(lambda mask: open_image(*mask), masks):
        bands = np.asarray(image.convert("L") if image.mode == "1" else image)
        if image.mode == "F" and not (bands == np.round(bands)).all():
            raise ValueError("masks: got fractions or NaN, expected whole numbers")
        if bands.ndim == 3:
            bands = bands[..., : 1 if bands.shape[2] == 2 else 3]  # without alpha
            if (bands == bands[..., :1]).all():
                bands = bands[..., 0]
        if bands.ndim == 3:
            codes = bands.astype(np.int64) @ [1 << 16, 1 << 8, 1]
            numbers, counts = np.unique(codes, return_counts=True)
            values: list[Value] = [(c >> 16, c >> 8 & 255, c & 255) for c in numbers.tolist()]
        else:
            numbers, counts = np.unique(bands, return_counts=True)
            values = [int(number) for number in numbers.tolist()]
        pixels.update(dict(zip(values, counts.tolist(), strict=True)))
        files.update(values)
        most = max(most, len(values))
        if len(values) <= 40:
            together.update(map(frozenset, combinations(values, 2)))
    if any(isinstance(value, tuple) for value in pixels):  # a mask of greys among colours

        def colour(value: Value) -> Value:
            return (value,) * 3 if isinstance(value, int) else value

        for found in (pixels, files):
            for value in [value for value in found if isinstance(value, int)]:
                found[colour(value)] += found.pop(value)
        together = {frozenset(map(colour, both)) for both in together}
    return ValueCounts(pixels=pixels, files=files, together=together, most=most)


def are_label_images(masks: Iterable[np.ndarray]) -> bool:
    """Whether masks number their objects: each number in one place, and many of them.

    In files of more than 8 bits few are enough, if they go from 1 on.
    """
    verdicts = []
    for mask in masks:
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            return False
        numbers, counts = np.unique(mask[mask > 0], return_counts=True)
        if not len(numbers):
            continue
        # In one place, so in one run of a row; edges that are smoothed or of JPEGs have many.
        starts = np.diff(mask, axis=1, prepend=0) != 0
        rows, columns = np.nonzero(starts & (mask > 0))
        runs = np.stack((rows, mask[rows, columns]), axis=1)
        alone = len(np.unique(runs, axis=0)) / len(runs)
        many = len(numbers) > _MANY and counts.max() < 0.5 * counts.sum()
        deep = mask.dtype.itemsize > 1 and numbers[-1] == len(numbers)
        verdicts.append((alone > 0.8, many or deep))
    if not verdicts:
        return False
    in_place, enough = np.mean(verdicts, axis=0)
    return bool(in_place > 0.8 and enough > 0.1)


def find_classes(values: ValueCounts) -> FoundClasses:
    """Tell the classes that masks seem to have; not for those that number objects.

    Raises:
        ValueError: if there are no two.
    """
    total = values.pixels.total()
    share = {value: count / total for value, count in values.pixels.items()}
    if values.most > 40:  # few values are meant: the others come of smoothing, or of JPEG
        groups, ignore = [[value] for value in _peaks(share)], list[Value]()
    else:
        groups, ignore = _groups(values, share)
    if not groups:
        raise ValueError(
            f"masks: got {values.most} values in one mask and none that stands out, expected those "
            "of classes; are these masks?"
        )
    if len(groups) < 2:
        raise ValueError(
            f"masks: got the value {groups[0][0]} nearly everywhere, expected several classes"
        )
    # What is 0 nearly everywhere is the background; other names nobody can know.
    parts = [sum(share[value] for value in group) for group in groups]
    names = [
        f"class_{group[0] if isinstance(group[0], int) else i}" for i, group in enumerate(groups)
    ]
    if groups[0] == [0] and parts[0] == max(parts):
        names[0] = "background"
        names[1:] = ["foreground"] if len(groups) == 2 else names[1:]
    meant = [value for group in groups for value in group]
    stray = [value for value in share if value not in [*meant, *ignore]]
    # Nearness means something only where classes are further apart.
    gap = min(
        _distance(one, other)
        for group, others in combinations(groups, 2)
        for one, other in product(group, others)
    )
    distances = {one: min(_distance(one, value) for value in meant) for one in stray}
    far = sorted(one for one, distance in distances.items() if 2 * distance >= gap)
    return FoundClasses(
        values=dict(zip(names, groups, strict=True)),
        shares=dict(zip(names, parts, strict=True)),
        ignore=[*ignore, *far[:20]],
        far=far,
        near={one: distance for one, distance in distances.items() if 2 * distance < gap},
    )


def _peaks(share: dict[Value, float]) -> list[Value]:
    """The values that nearly all others are close to; none if there are no such."""
    bins: defaultdict[Value, list[Value]] = defaultdict(list)
    for value in share:
        coarse = value // 32 if isinstance(value, int) else tuple(band // 32 for band in value)
        bins[coarse].append(value)
    peaks: list[Value] = []
    for members in sorted(bins.values(), key=lambda some: -sum(share[one] for one in some)):
        highest = max(members, key=lambda one: share[one])
        if sum(share[one] for one in members) > 0.01 and all(
            _distance(highest, peak) > 40 for peak in peaks
        ):
            peaks.append(highest)
    far = (part for one, part in share.items() if all(_distance(one, p) > 32 for p in peaks))
    return sorted(peaks) if sum(far) < 0.1 else []


def _groups(
    values: ValueCounts, share: dict[Value, float]
) -> tuple[list[list[Value]], list[Value]]:
    """The values of each class, and those to be ignored."""
    main = sorted(
        value
        for value, part in share.items()
        if part >= 0.002 or (part >= 0.0002 and values.files[value] > 1)
    )
    # 255 above 0, 1, 2 ... mostly is what nobody labelled.
    ignore = [255] if len(main) > 3 and main[-2:] == [len(main) - 2, 255] else []
    groups: list[list[Value]] = []
    for value in main[: len(main) - len(ignore)]:
        # Neighbouring numbers that no mask has both of are one class, saved in two ways.
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
    return groups, list(ignore)


def _distance(one: Value, other: Value) -> int:
    """Of the channel that differs most."""
    if isinstance(one, int) or isinstance(other, int):
        assert isinstance(one, int)
        assert isinstance(other, int)
        return abs(one - other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
