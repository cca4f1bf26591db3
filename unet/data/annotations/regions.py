"""Regions of an image, and the pixels in them.

A pixel belongs to a region if its centre is inside. The pixel in row y and column x spans x to
x + 1 and y to y + 1. Of two regions with a common border, each pixel belongs to exactly one.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

Size = tuple[int, int]
"""(height, width)."""


class Filled(NamedTuple):
    """The pixels of a region within an image.

    Args:
        top: row of the upper left pixel of the mask.
        left: its column.
        mask: bool (h, w).
        is_cut: whether more than a pixel of the region is beyond the image.
    """

    top: int
    left: int
    mask: np.ndarray
    is_cut: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return the part of an image (H, W) that the mask covers."""
        height, width = self.mask.shape
        return image[self.top : self.top + height, self.left : self.left + width]


class Region(Protocol):
    """A region in pixels, of an image of any size."""

    def fill(self, size: Size) -> Filled:
        """Return the pixels within an image of that size.

        Raises:
            ValueError: without a place, if the region does not fit an image of that size.
        """


@dataclass(frozen=True)
class Polygon:
    """Polygons with holes.

    Args:
        parts: for each polygon its rings: the outline and the holes, each (N, 2) as x, y.
        unit: what a coordinate is multiplied by: 1 for pixels; None for fractions of the width and
            height.
    """

    parts: tuple[tuple[np.ndarray, ...], ...]
    unit: float | None = 1.0

    def scaled(self, size: Size) -> list[list[np.ndarray]]:
        """Return the rings of each polygon in pixels."""
        factor = np.array(size[::-1]) if self.unit is None else self.unit
        return [[ring * factor for ring in rings] for rings in self.parts]

    def fill(self, size: Size) -> Filled:
        """Return the pixels inside; see `Region`."""
        parts = self.scaled(size)
        corners = np.concatenate([rings[0] for rings in parts])
        left, top = np.clip(np.floor(corners.min(0)), 0, size[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(corners.max(0)), 0, size[::-1]).astype(int).tolist()
        inside = np.zeros((bottom - top, right - left), bool)
        for outline, *holes in parts:
            part = fill_ring(outline - (left, top), inside.shape)
            for hole in holes:
                part &= ~fill_ring(hole - (left, top), inside.shape)
            inside |= part
        return Filled(top, left, inside, is_outside(corners, size))


@dataclass(frozen=True)
class Ellipse:
    """An ellipse: centre x, y and radii in pixels, turned clockwise by an angle in degrees."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0

    def fill(self, size: Size) -> Filled:
        """Return the pixels inside; see `Region`."""
        reach = max(self.radii)
        x, y = self.centre
        left, right = (int(np.clip(edge, 0, size[1])) for edge in (x - reach, x + reach + 1))
        top, bottom = (int(np.clip(edge, 0, size[0])) for edge in (y - reach, y + reach + 1))
        down, across = np.mgrid[top:bottom, left:right] + 0.5 - np.array([y, x])[:, None, None]
        turn = np.deg2rad(self.angle)
        along = across * np.cos(turn) + down * np.sin(turn)
        beside = down * np.cos(turn) - across * np.sin(turn)
        inside = (along / self.radii[0]) ** 2 + (beside / self.radii[1]) ** 2 <= 1
        return Filled(top, left, inside)


@dataclass(frozen=True)
class Bitmap:
    """A mask, bool (h, w), and the place of its upper left pixel, also outside the image."""

    top: int
    left: int
    mask: np.ndarray

    def fill(self, size: Size) -> Filled:
        """Return the pixels within the image; see `Region`."""
        top, left = max(0, self.top), max(0, self.left)
        rows = slice(top - self.top, max(0, size[0] - self.top))
        mask = self.mask[rows, left - self.left : max(0, size[1] - self.left)]
        is_cut = bool(np.count_nonzero(mask) < np.count_nonzero(self.mask))
        return Filled(min(top, size[0]), min(left, size[1]), mask, is_cut)


@dataclass(frozen=True)
class Runs:
    """Runs of pixels: where each begins and how long it is, row by row or column by column.

    Args:
        starts: places from 0, (N,) integers.
        lengths: of the runs, (N,) integers.
        by_column: whether pixels are counted down the columns, else along the rows.
        box: (top, left, height, width) of what is counted; None for the image.
    """

    starts: np.ndarray
    lengths: np.ndarray
    by_column: bool
    box: tuple[int, int, int, int] | None = None

    def fill(self, size: Size) -> Filled:
        """Return the pixels of the runs; see `Region`."""
        top, left, height, width = self.box or (0, 0, *size)
        ends = self.starts + self.lengths
        if not ends.size:
            return Filled(0, 0, np.zeros((0, 0), bool))
        if top + height > size[0] or left + width > size[1]:
            raise ValueError(
                f"got a mask of {height} x {width} pixels at row {top}, column {left}, expected "
                f"one within {size[0]} x {size[1]} pixels; correct the image or the annotation"
            )
        if self.starts.min() < 0 or ends.max() > height * width:
            raise ValueError(
                f"got runs of pixels up to {ends.max()}, expected at most {height * width}, as in "
                f"{height} x {width} pixels; correct the image or the annotation"
            )
        # Only the lines, columns or rows, that have runs.
        length = height if self.by_column else width
        first, stop = int(self.starts.min()) // length, -(-int(ends.max()) // length)
        changes = np.zeros((stop - first) * length + 1, np.int32)
        np.add.at(changes, self.starts - first * length, 1)
        np.add.at(changes, ends - first * length, -1)
        lines = changes[:-1].cumsum().reshape(stop - first, length) > 0
        if self.by_column:
            return Bitmap(top, left + first, lines.T).fill(size)
        return Bitmap(top + first, left, lines).fill(size)


def is_outside(corners: np.ndarray, size: Size) -> bool:
    """Whether a point x, y of (N, 2) is more than a pixel beyond an image."""
    return bool(corners.min() < -1 or (corners > np.array(size[::-1]) + 1).any())


def runs_of_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert counts of pixels, in turn outside and inside, to starts and lengths of runs."""
    ends = counts.cumsum()
    return ends[0:-1:2], counts[1::2]


def fill_ring(ring: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels inside a closed line (N, 2) of x, y, as bool of a shape (h, w).

    What a line that crosses itself goes around in any direction is inside.
    """
    height, width = shape
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    # The rows whose centres are between the ends of each edge: the upper end belongs to it.
    ends = np.ceil(np.sort([y0, y1], axis=0) - 0.5).clip(0, height).astype(int)
    counts = ends[1] - ends[0]
    edges = np.repeat(np.arange(len(ring)), counts)
    rows = np.arange(len(edges)) + np.repeat(ends[0] - counts.cumsum() + counts, counts)
    x0, y0, x1, y1 = x0[edges], y0[edges], x1[edges], y1[edges]
    across = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    columns = np.ceil(across - 0.5).clip(0, width).astype(int)
    windings = np.zeros((height, width + 1), np.int32)
    np.add.at(windings, (rows, columns), np.where(y1 > y0, 1, -1))
    inside: np.ndarray = windings[:, :-1].cumsum(1) != 0
    return inside
