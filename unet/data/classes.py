"""Which mask value means which class."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unet.runtime.text import join_some

Colour = tuple[int, int, int]

# Grey values or palette indices (several as [127, 128] or as text such as "1-3, 7"), or colours.
Values = int | str | Colour | Sequence[int] | Sequence[Colour]

IGNORE_INDEX = 255
"""Class id of pixels that are neither trained on nor scored."""

_STRAY = 254

_ROUNDING = 8
"""JPEG changes the value of a whole area by no more than this."""

# Distinct also for the colour-blind: Okabe and Ito 2008, "Color Universal Design", with grey for
# the first class, which is usually the background.
_PALETTE: tuple[Colour, ...] = (
    (90, 90, 90),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


class StrayValueError(ValueError):
    """A mask contains values that are neither a class nor ignored; `advice` says what would fit."""

    def __init__(
        self,
        what: str,
        advice: str,
        pixels: Mapping[int | Colour, int],
        present: set[int],
        total: int,
        interior: int,
    ) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what  # the message without advice
        self.pixels = pixels  # number of pixels of each stray value
        self.present = present  # class ids of the other pixels
        self.total = total  # number of all pixels
        self.interior = interior  # number of pixels of values far from all others, within areas


class ClassMap:
    """Which mask value means which class. Class ids are the places in the given order.

    Values are grey values (32-bit integers) for all classes or colours for all. Pixels of the
    values `ignore` are neither trained on nor scored. Other values mean the nearest one within
    `tolerance` (for colours the largest difference of a channel). Pictures show the classes in
    `colours`.

    Raises:
        ValueError: for too few or too many classes, grey values and colours, or a value twice.
    """

    def __init__(
        self,
        classes: Mapping[str, Values],
        ignore: Sequence[Values] = (),
        tolerance: int = 0,
        colours: Mapping[str, Colour] | None = None,
    ) -> None:
        self.names = tuple(classes)
        self._colours = colours or {}
        self.tolerance = tolerance
        if not 1 < len(self.names) < _STRAY:
            raise ValueError(
                f"data.classes: got {len(self.names)} class(es), expected 2 to {_STRAY - 1}"
            )
        self._classes, self._ignore = dict(classes), list(ignore)
        all_values = [*classes.values(), *ignore]
        self.coloured = _is_coloured(all_values[0])
        if other := [values for values in all_values if _is_coloured(values) != self.coloured]:
            raise ValueError(
                f"data.classes: got both {_show(all_values[0])} and {_show(other[0])}, expected "
                "grey values only or colours [R, G, B] only, in data.ignore too; write three grey "
                "values as '1, 2, 3'"
            )
        # (lowest, highest, class id), colours as 0xRRGGBB.
        ids = [*range(len(classes)), *[IGNORE_INDEX] * len(ignore)]
        ranges = [(*ends, i) for i, v in zip(ids, all_values, strict=True) for ends in _ranges(v)]
        firsts = {i: low for low, _, i in reversed(ranges)}
        if not self.coloured and (
            wrong := [v for r in ranges for v in r[:2] if abs(v) > 2**31 - 1]
        ):
            raise ValueError(
                f"data.classes: got {wrong[0]}, expected values of 32-bit integers, the largest "
                "that masks are written with"
            )
        # Masks are written with the first value of each class.
        self.values = tuple(self._value(firsts[i]) for i in range(len(classes)))
        ranges.sort()
        if twice := [start for (_, end, _), (start, _, _) in pairwise(ranges) if start <= end]:
            raise ValueError(
                f"data.classes: got the value {_show(self._value(twice[0]))} twice, expected each "
                "value to mean one class, in data.ignore too"
            )
        self._lows, self._highs, self._ids = np.array(ranges, dtype=np.int64).T

    @property
    def colours(self) -> tuple[Colour, ...]:
        """A colour to draw each class in: the given one, or that of its mask, or of a palette."""
        if self.coloured:
            colours = np.array(self.values)
        else:  # after its end the palette starts again, darker
            rounds, places = np.divmod(np.arange(len(self.names)), len(_PALETTE))
            colours = np.array(_PALETTE)[places] >> rounds[:, None]
        own = [self._colours.get(name) for name in self.names]
        return tuple(
            given or (r, g, b) for given, (r, g, b) in zip(own, colours.tolist(), strict=True)
        )

    def exact(self) -> "ClassMap":
        """Return the same classes without tolerance."""
        return ClassMap(self._classes, self._ignore)

    def __contains__(self, code: int) -> bool:
        """Whether a value means a class; ignored values do not."""
        return int(self._lookup(np.array([code]))[0]) < _STRAY

    @property
    def mask_suffix(self) -> str:
        """The ending of mask files: PNG holds no negative values and none above 65535."""
        values = np.array(self.values)
        return ".png" if self.coloured or _fits(values, np.uint16) else ".tif"

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Convert class ids (H, W) to mask values (H, W) or colours (H, W, 3).

        They are uint8, or the first of uint16 and int32 that the values need.
        """
        values = np.array(self.values)
        dtypes = (np.uint8, np.uint16, np.int32)
        dtype = next(one for one in dtypes if _fits(values, one))
        encoded: np.ndarray = values.astype(dtype)[ids]
        return encoded

    def decode(self, codes: np.ndarray, path: str | Path, what: str = "mask value") -> np.ndarray:
        """Convert mask values, colours as 0xRRGGBB, to class ids of uint8.

        Raises:
            StrayValueError: if a value is neither class nor ignored, nor within the tolerance.
        """
        ids: np.ndarray
        if codes.dtype == np.uint8:  # several times as fast as an index
            table = self._lookup(np.arange(256)).tobytes()
            translated = bytearray(np.ascontiguousarray(codes)).translate(table)
            ids = np.frombuffer(translated, np.uint8).reshape(codes.shape)
        elif codes.size and codes.min() >= 0 and codes.max() < 65536:
            ids = self._lookup(np.arange(int(codes.max()) + 1))[codes]
        else:
            ids = self._lookup(codes)
        stray = ids == _STRAY
        if not stray.any():
            return ids
        values, inverse, counts = np.unique(codes[stray], return_inverse=True, return_counts=True)
        distances, nearest = self._nearest(values)
        if (far := distances > self.tolerance).any():
            shown = [self._value(value) for value in values[far].tolist()]
            pixels = dict(zip(shown, counts[far].tolist(), strict=True))
            interior = int(np.sum(is_interior(codes)[stray] & (distances[inverse] > _ROUNDING)))
            ignored = f", ignored {_show(self._ignore)}" if self._ignore else ""
            raise StrayValueError(
                f"{path}: got the {what} {_show_counts(pixels)}, expected "
                f"{_show(self._classes)}{ignored}",
                self.suggest(pixels, set(range(len(self.names))), ids.size, interior),
                pixels,
                set(np.unique(ids[~stray]).tolist()),
                ids.size,
                interior,
            )
        ids[stray] = nearest[inverse]
        return ids

    def suggest(
        self,
        pixels: Mapping[int | Colour, int],
        present: set[int],
        total: int,
        interior: int = 0,
    ) -> str:
        """Say which settings would accept stray values; arguments as of `StrayValueError`."""
        tolerance = int(self._nearest(np.array([_code(value) for value in pixels]))[0].max())
        nearest = f"data.tolerance={tolerance} takes the nearest class"
        # Being near means something only where classes are further apart. Soft edges and noise vary
        # from pixel to pixel; the values of classes fill areas.
        apart = 2 * tolerance < self._gap() and 10 * interior < sum(pixels.values())
        if len(pixels) > 5 and apart:
            return (
                f"{nearest}, as for a mask that was resized smoothly or saved as JPEG; or save it "
                "again from the original"
            )
        if len(pixels) > 20:
            objects = '{background: 0, object: "1-65535"}'
            return (
                "correct the mask, which holds too many values for classes; if they number "
                f"objects: data.classes={objects}"
            )
        absent = [name for i, name in enumerate(self.names) if i not in present]
        if len(pixels) <= len(absent):  # a class with another value than the given one
            classes = {**self._classes, **dict(zip(absent, pixels, strict=False))}
            return f"data.classes that would fit: {_show(classes)}"
        classes = {**self._classes, **{f"new_{i}": value for i, value in enumerate(pixels, 1)}}
        advice = f"data.classes that would fit: {_show(classes)}, or data.ignore: "
        advice += _show([*self._ignore, *pixels])
        return f"{advice}; {nearest}" if apart and sum(pixels.values()) < total / 100 else advice

    def _gap(self) -> int:
        """The smallest distance of two values of different classes."""
        distances = self._distances(self._lows, self._highs)
        return int(distances[self._ids[:, None] != self._ids].min())

    def _lookup(self, codes: np.ndarray) -> np.ndarray:
        """Class ids of values, uint8; `_STRAY` for neither class nor ignored."""
        places = np.searchsorted(self._lows, codes, side="right") - 1
        known = (places >= 0) & (codes <= self._highs[places])
        return np.where(known, self._ids[places], _STRAY).astype(np.uint8)

    def _nearest(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distance of each value (U,) to the nearest known one, and the class id of that."""
        distances = self._distances(codes, codes).clip(0)
        return distances.min(1), self._ids[distances.argmin(1)].astype(np.uint8)

    def _distances(self, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """The distance (U, V) of ranges (U,) to the known ones (V,); for colours of any channel."""
        shifts, mask = ([16, 8, 0], 255) if self.coloured else ([0], -1)
        low, high, known_low, known_high = (
            codes.astype(np.int64)[:, None] >> shifts & mask
            for codes in (lows, highs, self._lows, self._highs)
        )
        apart = np.maximum(low[:, None] - known_high, known_low - high[:, None])
        return np.asarray(apart.max(2))

    def _value(self, code: int) -> int | Colour:
        return (code >> 16, code >> 8 & 255, code & 255) if self.coloured else code


def is_interior(codes: np.ndarray) -> np.ndarray:
    """Whether the four neighbours of each pixel (H, W) have its value; at borders, fewer do."""
    inside = np.ones(codes.shape, bool)
    for axis in range(codes.ndim):
        same = np.diff(codes, axis=axis) == 0
        before, after = np.moveaxis(inside, axis, 0)[:-1], np.moveaxis(inside, axis, 0)[1:]
        before &= np.moveaxis(same, axis, 0)
        after &= np.moveaxis(same, axis, 0)
    return inside


def _fits(values: np.ndarray, dtype: type[np.integer[Any]]) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= values.min() and values.max() <= limits.max)


def _is_coloured(values: Values) -> bool:
    """Whether these are colours: three numbers, or a list of three numbers each."""
    if isinstance(values, int | str) or not values:
        return False
    return not isinstance(values[0], int) or len(values) == 3


def _ranges(values: Values) -> list[tuple[int, int]]:
    """(lowest, highest) of each value or range, colours as 0xRRGGBB."""
    match values:
        case int():
            return [(values, values)]
        case str():
            pattern = re.compile(r"\s*(-?\d{1,10})\s*(?:-\s*(-?\d{1,10})\s*)?")
            matches = [pattern.fullmatch(part) for part in values.split(",")]
            ranges = [(int(match[1]), int(match[2] or match[1])) for match in matches if match]
            if len(ranges) < len(matches) or any(low > high for low, high in ranges):
                raise ValueError(
                    f"data.classes: got {values!r}, expected values such as '127, 128' or '1-255'"
                )
            return ranges
        case _:
            listed = [values] if len(values) == 3 and isinstance(values[0], int) else values
            if np.ndim(listed) == 2 and np.max(listed) > 255:
                raise ValueError(f"data.classes: got {_show(values)}, expected colours up to 255")
            if not listed:
                raise ValueError("data.classes: got an empty list, expected a value for each class")
            return [(_code(value), _code(value)) for value in listed]


def _code(value: Any) -> int:
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _show(values: Any) -> str:
    """Values as in YAML."""
    if isinstance(values, str):
        return f'"{values}"'
    if isinstance(values, Mapping):
        return f"{{{', '.join(f'{name}: {_show(one)}' for name, one in values.items())}}}"
    return str(values) if isinstance(values, int) else f"[{', '.join(map(_show, values))}]"


def _show_counts(pixels: Mapping[int | Colour, int]) -> str:
    return join_some([f"{_show(one)} ({n} pixel{'s' * (n > 1)})" for one, n in pixels.items()])
