"""Extra weights of the background between cells: label images (H, W), 0 outside of all cells.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, section 3 with equation 2. The paper
does not say the weight of pixels inside cells. Here it is nothing extra, as in the authors' later
plugin for ImageJ (Falk et al. 2019, "U-Net: deep learning for cell counting, detection, and
morphometry", Nature Methods 16).
"""

from dataclasses import dataclass

import numpy as np

from unet.data.classes import IGNORE_INDEX
from unet.runtime.optional import import_extra

_CUTOFF = 5  # sigmas; beyond, less than 4e-6 of the weight is left, which becomes 0


@dataclass(frozen=True, kw_only=True)
class Border:
    """How much more the background between cells weighs."""

    weight: float = 10.0  # w0, the limit of the extra weight for two cells that almost touch
    sigma: float = 5.0  # in pixels
    classes: tuple[int, ...] = ()  # ids whose components are cells; () for those of label images


def separate_cells(ids: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separate touching cells of one class: pixels next to another cell become class 0.

    Gaps are two pixels wide, one on each side of a shared edge, but not between two classes nor on
    ignored pixels. Returns class ids and cells (H, W) with the gaps.
    """
    gap = np.zeros(cells.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        touching = (cells[here] != cells[there]) & (cells[here] > 0) & (cells[there] > 0)
        touching &= (ids[here] == ids[there]) & (ids[here] != IGNORE_INDEX)
        gap[here] |= touching
        gap[there] |= touching
    return np.where(gap, 0, ids).astype(ids.dtype), np.where(gap, 0, cells)


def border_weights(cells: np.ndarray, weight: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Compute extra weights w0 exp(-(d1 + d2)^2 / (2 sigma^2)): (H, W) float32.

    d1 and d2 are the distances in pixels, between pixel centres, to the nearest and to the second
    nearest cell. The weight is 0 inside cells, and where d1 + d2 is more than 5 sigma.
    """
    ndimage = import_extra("scipy.ndimage", "border weights")
    nearest, second = np.full((2, *cells.shape), np.inf, np.float32)
    margin = int(_CUTOFF * sigma)
    # Distances to a cell are computed only near it.
    numbers, places = np.unique(cells, return_inverse=True)
    consecutive = places.reshape(cells.shape) + (numbers[0] > 0)
    for number, (rows, columns) in enumerate(ndimage.find_objects(consecutive), start=1):
        top, left = max(0, rows.start - margin), max(0, columns.start - margin)
        window = np.s_[top : rows.stop + margin, left : columns.stop + margin]
        distance = ndimage.distance_transform_edt(consecutive[window] != number)
        farther = np.maximum(nearest[window], distance)
        nearest[window] = np.minimum(nearest[window], distance)
        second[window] = np.minimum(second[window], farther)
    both = nearest + second
    between = (cells == 0) & (both <= _CUTOFF * sigma)
    weights = np.zeros(cells.shape, np.float32)
    weights[between] = weight * np.exp(-np.square(both[between]) / (2 * sigma**2))
    return weights
