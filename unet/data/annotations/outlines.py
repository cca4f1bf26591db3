"""Masks -> outlines of their objects, along the borders of pixels; needs rasterio."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unet.data.annotations.regions import Filled, Polygon
from unet.runtime.optional import import_extra


class Outline(NamedTuple):
    """An object: a 4-connected component of a class.

    Args:
        class_id: from 1.
        rings: the outline and the holes, each (N, 2) of x, y, the first point not repeated.
        pixels: those of the object.
    """

    class_id: int
    rings: list[np.ndarray]
    pixels: Filled

    @property
    def corner(self) -> tuple[int, int]:
        """x, y of the upper left corner."""
        return self.pixels.left, self.pixels.top


def trace(ids: np.ndarray, num_classes: int) -> Iterator[Outline]:
    """Yield the objects of class ids (H, W) uint8, without those of class 0 and ignored pixels.

    The pixels inside of all outlines are exactly those of the classes.
    """
    features = import_extra("rasterio.features", "polygons")
    inside = (ids > 0) & (ids < num_classes)
    for geometry, value in features.shapes(ids, mask=inside, connectivity=4):
        rings = [np.array(ring[:-1]) for ring in geometry["coordinates"]]
        yield Outline(int(value), rings, Polygon((tuple(rings),)).fill(ids.shape))
