"""The extra weight of the background between cells that are close together.

Label images are (H, W) integer arrays, one number for each cell, 0 for what lies between them. The
numbers themselves do not matter.

Source: Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", arXiv 1505.04597, section 3 with equation 2. The paper does not say what pixels
inside cells get; here, as in the authors' later plugin for ImageJ (Falk et al. 2019, "U-Net: deep
learning for cell counting, detection, and morphometry", Nature Methods 16), it is nothing extra.
"""

from dataclasses import dataclass

import numpy as np

from unet.runtime.optional import import_extra

_REACH = 5
"""In sigmas: beyond, less than 4e-6 of the weight is left, which is taken for 0."""


@dataclass(frozen=True, kw_only=True)
class Border:
    """Which pixels weigh how much more.

    Args:
        weight: w0, which the extra weight comes near to where two cells are next to touching.
        sigma: in pixels.
        classes: ids of those whose connected parts are cells, where cells are not numbered.
    """

    weight: float = 10.0
    sigma: float = 5.0
    classes: tuple[int, ...] = ()


def part_cells(
    ids: np.ndarray, cells: np.ndarray, ignore_index: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """Part cells of one class that touch: pixels beside another cell become the first class.

    Beside means across an edge, so that the gap is two pixels wide. Where another class begins, and
    on ignored pixels, there is none.

    Args:
        ids: of classes (H, W).
        cells: label image.
        ignore_index: the class id of ignored pixels.

    Returns:
        Both with the gaps.
    """
    gap = np.zeros(cells.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        touching = (cells[here] != cells[there]) & (cells[here] > 0) & (cells[there] > 0)
        touching &= (ids[here] == ids[there]) & (ids[here] != ignore_index)
        gap[here] |= touching
        gap[there] |= touching
    return np.where(gap, 0, ids).astype(ids.dtype), np.where(gap, 0, cells)


def border_weights(cells: np.ndarray, weight: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Compute the extra weight of each pixel: w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the distances in pixels, between centres, to the nearest pixel of the nearest cell
    and of the second nearest. 0 inside cells, and where d1 + d2 is more than 5 sigma.

    Args:
        cells: label image.
        weight: w0.
        sigma: in pixels.

    Returns:
        (H, W) float32.

    Raises:
        ValueError: if scipy is not installed.
    """
    ndimage = import_extra("scipy.ndimage", "border weights")
    nearest, second = np.full((2, *cells.shape), np.inf, np.float32)
    margin = int(_REACH * sigma)
    # A cell matters only near it, and its distances are computed only there.
    numbers, places = np.unique(cells, return_inverse=True)
    numbered = places.reshape(cells.shape) + (numbers[0] > 0)  # without gaps in the numbers
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
        window = (
            slice(max(0, rows.start - margin), rows.stop + margin),
            slice(max(0, columns.start - margin), columns.stop + margin),
        )
        distance = ndimage.distance_transform_edt(numbered[window] != number)
        farther = np.maximum(nearest[window], distance)
        nearest[window] = np.minimum(nearest[window], distance)
        second[window] = np.minimum(second[window], farther)
    both = nearest + second
    between = (cells == 0) & (both <= _REACH * sigma)
    weights = np.zeros(cells.shape, np.float32)
    weights[between] = weight * np.exp(-np.square(both[between]) / (2 * sigma**2))
    return weights
