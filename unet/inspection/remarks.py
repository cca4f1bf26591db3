"""Remarks of `unet check` on single pairs: likely mistakes that the pixels show."""

from dataclasses import replace

import numpy as np

from unet.data.image_io import read_image
from unet.data.image_types import Header
from unet.data.pairing import Pair
from unet.data.reader import PairReader

_FEWEST_PIXELS = 0.001  # of an image, for a value that may be nodata
_HUGE = 1e9  # a value beyond is no brightness, such as -3.4e38


def find_remarks(
    pair: Pair,
    reader: PairReader,
    header: Header,
    mask_header: Header,
    image: np.ndarray,
    ids: np.ndarray,
) -> list[str]:
    """Describe what is unusual in an image (C, H, W) and its class ids (H, W)."""
    remarks = []
    if header.note:
        remarks.append(f"was {header.note}")
    if (value := find_nodata(image)) is not None:
        remarks.append(
            f"has pixels of {value:.9g}, far from all others; if they are missing, set "
            f"data.nodata={value:.9g}"
        )
    if header.orientation != 1 and mask_header.orientation == 1:
        unturned = replace(reader.options, exif="ignore")
        before = read_image(pair.images, reader.in_channels, pair.page, unturned)
        fits_before = before.shape == image.shape and (
            _edge_contrast(before, ids) > 1.2 * _edge_contrast(image, ids)
        )
        if fits_before:
            remarks.append(
                "is turned by its EXIF orientation, and its mask fits better before; set "
                "data.exif=ignore if the masks were drawn on unturned images"
            )
    return remarks


def find_nodata(image: np.ndarray) -> float | None:
    """Return the lowest or highest value if it may mean missing pixels that nothing declares.

    All others are at least their own range away from it. Unless it is huge, many pixels have it,
    and for integers it fills half of a border of the image.
    """
    values = image[0]
    if values.dtype == np.float32 and np.isnan(values).any():
        return None
    for extreme in (values.min(), values.max()):
        same = values == extreme
        is_huge = abs(float(extreme)) >= _HUGE
        fewest = 1 if is_huge else _FEWEST_PIXELS * same.size
        if not fewest <= np.count_nonzero(same) < same.size:
            continue
        rest = values[~same].astype(np.float64)
        low, high, value = rest.min(), rest.max(), float(extreme)
        distance = low - value if value < low else value - high
        borders = (same[0], same[-1], same[:, 0], same[:, -1])
        at_border = values.dtype.kind == "f" or max(one.mean() for one in borders) >= 0.5
        if is_huge and distance >= high - low:
            return value
        if high > low and distance >= high - low and at_border:
            return value
    return None


def _edge_contrast(image: np.ndarray, ids: np.ndarray) -> float:
    """Return how much brighter or darker the image (C, H, W) gets at the borders of classes."""
    pixels = np.nan_to_num(image.astype(np.float32)).mean(0)
    steps = [np.abs(np.diff(pixels, axis=axis)) for axis in (0, 1)]
    edges = [np.diff(ids.astype(np.int16), axis=axis) != 0 for axis in (0, 1)]
    found = np.concatenate([step[edge] for step, edge in zip(steps, edges, strict=True)])
    return float(found.mean()) if found.size else 0.0
