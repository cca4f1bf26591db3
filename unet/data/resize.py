"""Resample images by area averages, and class ids by the nearest pixel."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) times the scale, rounded, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_area(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Average the pixels of an image (C, H, W) float32 that fall into each new one.

    Missing pixels (NaN) do not count; a new pixel is missing if all of its pixels are.
    """
    missing = image.isnan()
    if not missing.any():
        return F.interpolate(image[None], size, mode="area")[0]
    known = F.interpolate((~missing).float()[None], size, mode="area")[0]
    return F.interpolate(image.nan_to_num(0.0)[None], size, mode="area")[0] / known


def resize_nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Take the pixel of ids (H, W) at the centre of each new one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, ids.shape, strict=True)
    )
    return np.ascontiguousarray(ids[rows[:, None], columns])
