"""Which mask value means which class."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Colour = tuple[int, int, int]


Values = int | str | Colour | Sequence[int] | Sequence[Colour]
"""What means a class: a grey value or index; several as `[127, 128]` or text such as
`"1-3, 7"`, a range included; a colour; or a list of colours."""


IGNORE_INDEX = 255
"""The class id of pixels that are neither learned nor scored."""


_STRAY = 254


# Distinct at a glance, and for the colour-blind: Okabe and Ito 2008, "Color Universal Design",
# with grey for the first class, which mostly is the background.
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
    """A mask holds values that are neither class nor ignored.

    Args:
        what: the message, but for the advice.
        advice: what would fit this mask.
        pixels: of each such value.
        present: ids of the classes that the mask holds, too.
        total: pixels of the mask.
    """

    def __init__(
        self,
        what: str,
        advice: str,
        pixels: Mapping[int | Colour, int],
        present: set[int],
        total: int,
    ) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what
        self.pixels = pixels
        self.present = present
        self.total = total


class ClassMap:
    """Which mask value means which class; the class id is the place in the order given.

    Args:
        classes: name -> the values in mask files that mean it: grey values or indices (8 or 16
            bits), or RGB colours. All of one kind.
        ignore: values of the same kind whose pixels are neither learned nor scored.
        tolerance: a value that is none of these is taken for the nearest within this distance (of
            the channel that differs most); 0 makes it an error.

    Raises:
        ValueError: if there are no or too many classes, values of two kinds, or a value twice.
    """

    def __init__(
        self, classes: Mapping[str, Values], ignore: Sequence[Values] = (), tolerance: int = 0
    ) -> None:
        self.names = tuple(classes)
        self.tolerance = tolerance
        if not 1 < len(self.names) < _STRAY:
            raise ValueError(
                f"data.classes: got {len(self.names)} class(es), expected 2 to {_STRAY - 1}"
            )
        # Each value as (lowest, highest, class id), of colours as 0xRRGGBB.
        ranges: list[tuple[int, int, int]] = []
        self.coloured = _is_coloured([*classes.values(), *ignore][0])
        for given, i in (
            *zip(classes.values(), range(len(classes)), strict=True),
            *((given, IGNORE_INDEX) for given in ignore),
        ):
            if _is_coloured(given) != self.coloured:
                raise ValueError(
                    f"data.classes: got both {_show(next(iter(classes.values())))} and "
                    f"{_show(given)}, expected grey values only or colours [R, G, B] only, in "
                    "data.ignore too; write three grey values as '1, 2, 3'"
                )
            ranges.extend((low, high, i) for low, high in _ranges(given))
        self.values = tuple(
            self._value(next(low for low, _, j in ranges if j == i)) for i in range(len(classes))
        )
        """The value that is written for each class: the first of its values."""
        ranges.sort()
        for (_, end, _), (start, _, _) in pairwise(ranges):
            if start <= end:
                raise ValueError(
                    f"data.classes: got the value {_show(self._value(start))} twice, expected each "
                    "value to mean one class, in data.ignore too"
                )
        if not self.coloured and max(map(_code, self.values)) > 65535:
            raise ValueError(
                f"data.classes: got {max(map(_code, self.values))}, expected at most 65535, the "
                "largest value that masks are written with"
            )
        self._lows, self._highs, self._ids = np.array(ranges, dtype=np.int64).T
        self._given, self._ignore = dict(classes), list(ignore)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """A colour to draw each class in: its own in coloured masks, else one of a palette."""
        if self.coloured:
            return tuple(value for value in self.values if isinstance(value, tuple))
        # Past the palette's end its colours come again, darker.
        size = len(_PALETTE)
        return tuple(
            (r >> (i // size), g >> (i // size), b >> (i // size))
            for i in range(len(self.names))
            for r, g, b in [_PALETTE[i % size]]
        )

    def __contains__(self, code: int) -> bool:
        """Whether a value means a class; ignored values do not."""
        return int(self._lookup(np.array([code]))[0]) < _STRAY

    def ids_of(self, codes: np.ndarray, path: str | Path, what: str = "mask value") -> np.ndarray:
        """Class ids (H, W) uint8 of grey values, or of colours as 0xRRGGBB, from a file.

        Raises:
            StrayValueError: if a value is neither class nor ignored, nor near enough to one.
        """
        if codes.size and codes.min() >= 0 and codes.max() < 65536:
            ids: np.ndarray = self._lookup(np.arange(int(codes.max()) + 1))[codes]
        else:
            ids = self._lookup(codes)
        stray = ids == _STRAY
        if stray.any():
            numbers, inverse, counts = np.unique(
                codes[stray], return_inverse=True, return_counts=True
            )
            distances, nearest = self._nearest(numbers.astype(np.int64))
            far = distances > self.tolerance
            if far.any():
                values = [self._value(code) for code in numbers[far].tolist()]
                pixels = dict(zip(values, counts[far].tolist(), strict=True))
                present = set(np.unique(ids[~stray]).tolist())
                ignored = f", ignored {_show(self._ignore)}" if self._ignore else ""
                raise StrayValueError(
                    f"{path}: got the {what} {_some_values(pixels)}, expected "
                    f"{_show(self._given)}{ignored}",
                    self.that_would_fit(pixels, set(range(len(self.names))), ids.size),
                    pixels,
                    present,
                    ids.size,
                )
            ids[stray] = nearest[inverse]
        return ids

    def that_would_fit(
        self, pixels: Mapping[int | Colour, int], present: set[int], total: int
    ) -> str:
        """Say which setting would take stray values, too.

        Args:
            pixels: of each stray value.
            present: ids of the classes that are there besides.
            total: pixels in all.
        """
        codes = np.array([_code(value) for value in pixels], dtype=np.int64)
        tolerance = int(self._nearest(codes)[0].max())
        nearest = f"data.tolerance={tolerance} takes the nearest class"
        # Nearness means something only where classes are further apart.
        apart = 2 * tolerance < self._gap()
        if len(pixels) > 5 and apart:
            return (
                f"{nearest}, as for a mask that was resized smoothly or saved as JPEG; or save it "
                "again from the original"
            )
        if len(pixels) > 20:
            return "correct the mask, which holds too many values for classes"
        absent = [name for i, name in enumerate(self.names) if i not in present]
        if len(pixels) <= len(absent):  # a class with another value than the one given
            classes = {**self._given, **dict(zip(absent, pixels, strict=False))}
            return f"data.classes that would fit: {_show(classes)}"
        classes = {**self._given, **{f"new_{i}": value for i, value in enumerate(pixels, 1)}}
        advice = f"data.classes that would fit: {_show(classes)}, or data.ignore: "
        advice += _show([*self._ignore, *pixels])
        return f"{advice}; {nearest}" if apart and sum(pixels.values()) < total / 100 else advice

    def _gap(self) -> int:
        """The distance of the two classes that are nearest to each other."""
        ends = np.array([self._lows, self._highs]).T
        if self.coloured:
            bands = _bands(self._lows)
            distances = np.abs(bands[:, None] - bands).max(2)
        else:
            distances = np.maximum(ends[:, None, 0] - ends[:, 1], ends[:, 0] - ends[:, None, 1])
        return int(distances[self._ids[:, None] != self._ids].min())

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Class ids (H, W) -> the values of a mask file, (H, W), or colours (H, W, 3)."""
        values = np.array(self.values)
        dtype = np.uint8 if self.coloured or values.max() < 256 else np.uint16
        encoded: np.ndarray = values.astype(dtype)[ids]
        return encoded

    def _lookup(self, codes: np.ndarray) -> np.ndarray:
        """Class ids of codes, uint8; `_STRAY` for what is neither class nor ignored."""
        places = np.searchsorted(self._lows, codes, side="right") - 1
        known = (places >= 0) & (codes <= self._highs[places])
        return np.where(known, self._ids[places], _STRAY).astype(np.uint8)

    def _nearest(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distance of each code (U,) to the nearest known value, and that value's id."""
        if self.coloured:
            distances = np.abs(_bands(codes)[:, None] - _bands(self._lows)).max(2)
        else:
            codes = codes[:, None]
            distances = np.maximum(np.maximum(self._lows - codes, codes - self._highs), 0)
        return distances.min(1), self._ids[distances.argmin(1)].astype(np.uint8)

    def _value(self, code: int) -> int | Colour:
        return (code >> 16, code >> 8 & 255, code & 255) if self.coloured else code


def _is_coloured(given: Values) -> bool:
    """Whether values are colours: three numbers, or a list of three numbers each."""
    if isinstance(given, int | str) or not given:
        return False
    return not isinstance(given[0], int) or len(given) == 3


def _ranges(given: Values) -> list[tuple[int, int]]:
    """The values as (lowest, highest), colours as 0xRRGGBB."""
    match given:
        case int():
            return [(given, given)]
        case str():
            parts = [
                re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
                for part in given.split(",")
            ]
            ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
            if len(ranges) < len(parts) or any(low > high for low, high in ranges):
                raise ValueError(
                    f"data.classes: got {given!r}, expected values such as '127, 128' or '1-255'"
                )
            return ranges
        case _:
            values = [given] if len(given) == 3 and isinstance(given[0], int) else given
            codes = [_code(value) for value in values]
            if np.ndim(values) == 2 and np.max(values) > 255:
                raise ValueError(f"data.classes: got {_show(given)}, expected colours up to 255")
            if not codes:
                raise ValueError("data.classes: got an empty list, expected a value for each class")
            return [(code, code) for code in codes]


def _code(value: Any) -> int:
    """A value as a number, a colour as 0xRRGGBB."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _bands(codes: np.ndarray) -> np.ndarray:
    """0xRRGGBB (U,) -> (U, 3)."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)


def _show(value: Any) -> str:
    """A value or values as YAML has them."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_show(one)}' for name, one in value.items())}}}"
    return str(value) if isinstance(value, int) else f"[{', '.join(map(_show, value))}]"


def _some_values(pixels: Mapping[int | Colour, int]) -> str:
    shown = ", ".join(
        f"{_show(value)} ({count} pixel{'s' * (count > 1)})"
        for value, count in list(pixels.items())[:5]
    )
    return shown + (f" and {len(pixels) - 5} more" if len(pixels) > 5 else "")
