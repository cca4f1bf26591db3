"""The values of masks without a config -> the classes that they seem to mean."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet.data.classes import is_interior
from unet.data.masks import read_codes, to_8_bits
from unet.inspection.discovery import read_each
from unet.runtime.text import join_some

MANY_OBJECTS = 10
"""A mask with more numbers than this likely numbers objects, not classes."""
_MANY_VALUES = 40
"""A mask with more values than this holds no classes, or was smoothed or saved as JPEG."""
_NOISE = 16
"""Levels by which neighbours differ at most where JPEG or smoothing changed them within an area."""

Value = int | tuple[int, ...]
"""A grey value or palette index, or a colour."""


class ValueCounts(NamedTuple):
    """The values of a set of masks. Counters give numbers of pixels, `files` one of masks."""

    pixels: Counter[Value]
    files: Counter[Value]  # masks with the value
    interior: Counter[Value]  # the four neighbours have the same value
    smooth: Counter[Value]  # the four neighbours have the same value or a similar one
    edge: Counter[Value]  # on an edge, as smoothing and compression change them
    together: set[frozenset[Value]]  # pairs of values that occur in one mask
    most: int  # largest number of values in one mask
    jpeg: bool  # whether a mask is a JPEG file
    masks: int  # number of masks


class FoundClasses(NamedTuple):
    """The classes that the values of masks seem to mean, by proposed names."""

    values: dict[str, list[Value]]
    fractions: dict[str, float]  # of the pixels
    ignore: list[Value]  # 255 above small numbers, and stray values far from every class
    tolerance: int  # distance of the other stray values to the nearest class
    absorbed: list[Value]  # stray values within the tolerance
    notes: list[str]  # what is not certain


def count_values(masks: Iterable[tuple[str, int | None]], by_colour: bool = False) -> ValueCounts:
    """Count the values of masks (file and page); unreadable files are left out.

    Palettes give colours if `by_colour`, or if the same index has two of them; else indices count.

    Raises:
        ValueError: if no mask can be read.
    """
    pixels, files, interior, smooth, edge = counters = [Counter[Value]() for _ in range(5)]
    together: set[frozenset[Value]] = set()
    most, jpeg = 0, False
    count, failures, palette = 0, list[Exception](), dict[Value, tuple[int, ...]]()
    masks = list(masks)
    for codes, is_jpeg, colours in read_each(partial(_read_codes, by_colour), masks, failures):
        count += 1
        in_mask = _count(codes)
        shown = {i: colours[i] for i in in_mask if isinstance(i, int) and 0 <= i < len(colours)}
        if any(palette.setdefault(i, one) != one for i, one in shown.items()):
            return count_values(masks, by_colour=True)
        pixels.update(in_mask)
        files.update(in_mask.keys())
        places = find_places(codes)
        for counter, where in zip((interior, smooth, edge), places, strict=True):
            counter.update(_count(codes[where]))
        most, jpeg = max(most, len(in_mask)), jpeg or is_jpeg
        if len(in_mask) <= _MANY_VALUES:
            together.update(map(frozenset, combinations(in_mask, 2)))
    if not count and failures:
        raise failures[0]
    if any(isinstance(value, tuple) for value in pixels):  # some masks of coloured ones are grey

        def colour(value: Value) -> Value:
            # In a mask of 1 bit, 1 is white.
            white = 255 if value == 1 else value
            return (white,) * 3 if isinstance(white, int) else white

        for counter in counters:
            for value in [value for value in counter if isinstance(value, int)]:
                counter[colour(value)] += counter.pop(value)
        together = {frozenset(map(colour, both)) for both in together}
    return ValueCounts(pixels, files, interior, smooth, edge, together, most, jpeg, count)


_COLOUR = 1 << 24
"""Added to colours as 0xRRGGBB, to tell them from grey values."""


def _read_codes(
    by_colour: bool, mask: tuple[str, int | None]
) -> tuple[np.ndarray, bool, list[tuple[int, ...]]]:
    """Values (H, W), colours as 0x1RRGGBB without alpha, whether it is a JPEG, and the palette."""
    header, bands = read_codes(*mask)
    palette = np.empty((0, 3), np.uint8) if header.palette is None else header.palette[:, :3]
    if by_colour and bands.max(initial=0) < len(palette):
        colours = palette.astype(np.int64) @ [1 << 16, 1 << 8, 1] + _COLOUR
        return colours[bands], False, []
    if bands.dtype.kind == "f" and not (bands == np.round(bands)).all():
        raise ValueError(f"{mask[0]}: got fractions or NaN in a mask, expected whole numbers")
    is_jpeg = Path(mask[0]).suffix.lower() in {".jpg", ".jpeg"}
    if bands.ndim == 3 and (bands == bands[..., :1]).all():
        bands = bands[..., 0]
    if bands.ndim == 3:
        return to_8_bits(bands).astype(np.int64) @ [1 << 16, 1 << 8, 1] + _COLOUR, is_jpeg, []
    bands = bands.astype(np.int64) if bands.dtype.kind in "bf" else bands
    return bands, is_jpeg, list(map(tuple, palette.tolist()))


def _count(codes: np.ndarray) -> dict[Value, int]:
    """Value -> number of pixels."""
    if codes.dtype.itemsize <= 2 and codes.dtype.kind == "u":  # much faster than sorting
        counts = np.bincount(codes.ravel())
        numbers = np.flatnonzero(counts)
        counts = counts[numbers]
    else:
        numbers, counts = np.unique(codes, return_counts=True)
    return {
        (code >> 16 & 255, code >> 8 & 255, code & 255) if code >= _COLOUR else code: count
        for code, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def find_places(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where (H, W) pixels are inside areas of one value, of similar values, and on edges.

    On an edge, a pixel has a lower and a higher neighbour, or a similar one.
    """
    interior = is_interior(codes)
    rows, columns = np.nonzero(~interior)
    bands = _bands(codes)
    values = bands[rows, columns]
    low, high, similar = (np.zeros(len(rows), bool) for _ in range(3))
    alike = ~low
    for down, right in product((-1, 0, 1), repeat=2):
        y = (rows + down).clip(0, codes.shape[0] - 1)
        x = (columns + right).clip(0, codes.shape[1] - 1)
        difference = bands[y, x] - values
        low |= (difference < 0).any(1)
        high |= (difference > 0).any(1)
        near = (np.abs(difference) <= _NOISE).all(1)
        similar |= near & (difference != 0).any(1)
        if not (down and right):
            alike &= near
    smooth, edge = interior.copy(), np.zeros(codes.shape, bool)
    smooth[rows, columns], edge[rows, columns] = alike, (low & high) | similar
    return interior, smooth, edge


def _bands(codes: np.ndarray) -> np.ndarray:
    """Grey values as (H, W, 1), or the three channels of colours."""
    shifts = [16, 8, 0] if codes.size and codes.max() >= _COLOUR else None
    codes = codes.astype(np.int64)[..., None]
    return codes if shifts is None else codes >> shifts & 255


def find_classes(values: ValueCounts) -> FoundClasses:
    """Find the classes of masks that do not number objects; ValueError for fewer than two."""
    total = values.pixels.total()
    fraction = {value: count / total for value, count in values.pixels.items()}
    known = _find_known(values, fraction)
    if not known:
        raise ValueError(
            f"masks: got {values.most} values in one mask and none that stands out, expected those "
            "of classes; are these masks?"
        )
    notes = list[str]()
    ignore = _unlabelled(known)
    groups = _join_halves([one for one in known if one not in ignore], values, notes)
    if ignore:
        notes.append(
            f"{ignore[0]} stands apart from the other values, as for pixels without a label: it is "
            "ignored. To learn it, move it to the classes."
        )
    if len(groups) < 2:
        got = f"masks: got the value {groups[0][0]} nearly everywhere"
        raise ValueError(f"{got}, expected several classes")
    names = [
        f"class_{group[0] if isinstance(group[0], int) else i}" for i, group in enumerate(groups)
    ]
    stray, tolerance, absorbed = _place_strays(values, groups, ignore)
    fractions = [sum(fraction[value] for value in group) for group in groups]
    for one in absorbed:
        distances = [min(_distance(one, value) for value in group) for group in groups]
        fractions[distances.index(min(distances))] += fraction[one]
    if groups[0] == [0] and fractions[0] == max(fractions):
        names[0] = "background"
        names[1:] = ["foreground"] if len(groups) == 2 else names[1:]
    elif fractions[0] < 0.5 < max(fractions):
        largest = fractions.index(max(fractions))
        notes.append(
            f"{names[largest]} has most of the pixels. If it is the background, list it first: "
            "scores without background leave out the first class."
        )
    if 0 < len(often := [one for one in absorbed if fraction[one] >= 0.002]) < 4:
        notes.append(
            f"{join_some([str(one) for one in often])}: only along the edges of other values, as "
            "soft edges are, so no class. To learn it, add it to the classes."
        )
    return FoundClasses(
        values=dict(zip(names, groups, strict=True)),
        fractions=dict(zip(names, fractions, strict=True)),
        ignore=[*ignore, *stray],
        tolerance=tolerance,
        absorbed=absorbed,
        notes=notes,
    )


def _find_known(values: ValueCounts, fraction: dict[Value, float]) -> list[Value]:
    """The values of classes, without those that JPEG or smoothing made; none if none stand out."""
    frequent = sorted(
        value
        for value, part in fraction.items()
        if part >= 0.002 or (values.files[value] > 1 and (part >= 0.0002 or values.interior[value]))
    )
    # A class fills areas, or at least does not lie along the edges of other values only.
    solid = [one for one in frequent if 20 * values.interior[one] >= values.pixels[one]]
    thin = [one for one in frequent if one not in solid]
    firm = [one for one in thin if 2 * values.edge[one] < values.pixels[one]]
    if len(thin) > MANY_OBJECTS:
        most = max(values.pixels[one] for one in thin)
        firm = [one for one in firm if 2 * values.pixels[one] >= most] if len(solid) < 2 else []
    anchors = [*solid, *firm]
    peaks = _find_peaks(values, fraction)
    if len(peaks) > 1 and (values.jpeg or (len(thin) > MANY_OBJECTS and _gap(anchors) <= _NOISE)):
        return peaks
    known = sorted(anchors)
    if len(thin) <= MANY_OBJECTS and (len(anchors) < 2 or _gap(anchors) <= _NOISE):
        known = frequent  # no noise is between such values
    covered = sum(fraction[one] for one in known)
    edges = sum(values.edge[one] for one in fraction if one not in known) / values.pixels.total()
    # Each colour of a picture is in one file; those of classes are in several.
    single = sum(values.files[one] == 1 for one in known)
    is_picture = values.masks > 1 and len(known) > 20 and 2 * single > len(known)
    stands_out = covered > 0.5 or (covered > 0.25 and covered + edges > 0.9)
    return known if stands_out and not is_picture and len(known) < 254 else []


def _find_peaks(values: ValueCounts, fraction: dict[Value, float]) -> list[Value]:
    """The values that nearly all others are close to; none if there are no such values."""
    bins: defaultdict[Value, list[Value]] = defaultdict(list)
    for value in fraction:
        coarse = value // 32 if isinstance(value, int) else tuple(band // 32 for band in value)
        bins[coarse].append(value)
    peaks: list[Value] = []
    for members in sorted(bins.values(), key=lambda some: -sum(fraction[one] for one in some)):
        highest = max(members, key=lambda one: fraction[one])
        pixels = sum(values.pixels[one] for one in members)
        smooth = sum(values.smooth[one] for one in members)
        if (
            sum(fraction[one] for one in members) > 0.002
            and 10 * smooth > pixels
            and all(_distance(highest, peak) > 40 for peak in peaks)
        ):
            peaks.append(highest)
    near = [one for one in fraction if any(_distance(one, peak) <= _NOISE for peak in peaks)]
    return sorted(peaks) if sum(fraction[one] for one in near) > 0.7 else []


def _gap(values: Sequence[Value]) -> int:
    """The smallest distance of two values."""
    return min((_distance(one, other) for one, other in combinations(values, 2)), default=1 << 16)


def _unlabelled(known: Sequence[Value]) -> list[Value]:
    """-1, or 255 far above at least two small values, as they mark pixels without a label."""
    *others, last = known
    small = [one for one in others if isinstance(one, int) and one <= 100]
    if known[0] == -1 and len(known) > 2:
        return [-1]
    return [last] if last == 255 and len(small) == len(others) > 1 else []


def _join_halves(
    known: Sequence[Value], values: ValueCounts, notes: list[str]
) -> list[list[Value]]:
    """The values of each class: both ways to round half of 255 are one, if no mask has both."""
    groups: list[list[Value]] = [[value] for value in known]
    half = [[127], [128]]
    if (
        {0, 255} <= set(known)
        and all(one in groups for one in half)
        and frozenset((127, 128)) not in values.together
    ):
        place = groups.index([127])
        groups[place : place + 2] = [[127, 128]]
        notes.append("127 and 128 are half of 255, and no mask has both: they are one class.")
    return groups


def _place_strays(
    values: ValueCounts, groups: Sequence[Sequence[Value]], ignore: Sequence[Value]
) -> tuple[list[Value], int, list[Value]]:
    """Stray values to be ignored, and those to be absorbed with the tolerance they need."""
    known = [*(value for group in groups for value in group), *ignore]
    distances = {
        stray: min(_distance(stray, value) for value in known)
        for stray in values.pixels
        if stray not in known
    }
    # Only where classes are further apart does a small distance to one of them mean anything.
    gap = _gap_of_groups(groups)
    edge = sum(values.edge[stray] for stray in distances)
    if gap > _NOISE and len(distances) > 1 and 2 * edge > sum(values.pixels[s] for s in distances):
        far = list[Value]()  # soft edges lie anywhere between two classes
    else:
        far = sorted(stray for stray, distance in distances.items() if 2 * distance >= gap)
    absorbed = [stray for stray in distances if stray not in set(far)]
    return far, max((distances[stray] for stray in absorbed), default=0), absorbed


def _gap_of_groups(groups: Sequence[Sequence[Value]]) -> int:
    return min(
        _distance(one, other)
        for group, others in combinations(groups, 2)
        for one, other in product(group, others)
    )


def _distance(one: Value, other: Value) -> int:
    """The largest difference in any channel."""
    bands, others = ((value,) if isinstance(value, int) else value for value in (one, other))
    return max(abs(a - b) for a, b in zip(bands, others, strict=True))
