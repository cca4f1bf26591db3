"""Scores of class boundaries: boundary F1 and the Hausdorff distance.

A boundary pixel of a class is a pixel of it with a pixel of another class above, below, left or
right. The edge of the image is no boundary. Pixels that the target ignores are neither boundary
pixels nor neighbours, in target and prediction alike. Distances are Euclidean, in pixels, between
pixel centres.
"""

from types import ModuleType

import numpy as np

from unet.runtime.optional import import_extra


def boundary(ids: np.ndarray, class_id: int, counted: np.ndarray) -> np.ndarray:
    """Return the boundary pixels of a class as bool (H, W); only `counted` pixels (H, W) exist."""
    inside, other = (ids == class_id) & counted, (ids != class_id) & counted
    found: np.ndarray = inside & _ndimage().binary_dilation(other)
    return found


def boundary_f1(counts: np.ndarray) -> list[float]:
    """Compute the boundary F1 of each class from counts (K, 4) of `boundary_measures`.

    Precision is the fraction of predicted boundary pixels that are near true ones, recall that of
    true ones near predicted ones. 0 where only one side has boundary pixels, NaN where neither has.

    Source: Csurka, Larlus and Perronnin 2013, "What is a good evaluation measure for semantic
    segmentation?", BMVC, who average over images.
    """
    near_target, predicted, near_prediction, true = counts.T
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        precision, recall = near_target / predicted, near_prediction / true
        f1 = 2 * precision * recall / (precision + recall)
    f1[(predicted + true > 0) & (near_target * near_prediction == 0)] = 0
    scores: list[float] = f1.tolist()
    return scores


def boundary_measures(
    prediction: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    distance: float,
    percentile: float = 95,
    ignore_index: int = 255,
) -> tuple[np.ndarray, list[float]]:
    """Count the boundary pixels near the other boundary; compute the Hausdorff distances.

    These are percentiles (interpolated linearly) of the distances from the boundary pixels of one
    side to the nearest of the other, the larger one of both directions.

    Args:
        prediction: class ids (H, W).
        target: class ids (H, W).
        num_classes: K.
        distance: at which pixels are near, inclusive, in pixels.
        percentile: 100 is the usual Hausdorff distance, which a single pixel decides.
        ignore_index: class id in the target of pixels that do not count.

    Returns:
        Counts (K, 4) int64 of predicted boundary pixels near true ones, of all predicted ones, of
        true ones near predicted ones, of all true ones; counts of images can be added. K Hausdorff
        distances in pixels, NaN where a side has no boundary pixel.

    Raises:
        ValueError: if scipy is not installed.

    Source: Huttenlocher, Klanderman and Rucklidge 1993, "Comparing images using the Hausdorff
    distance", IEEE TPAMI 15(9): the partial distance, by rank instead of maximum.
    """
    counted = target != ignore_index
    counts, hausdorff = [], []
    for class_id in range(num_classes):
        found, true = boundary(prediction, class_id, counted), boundary(target, class_id, counted)
        # Distances only in the bounding box: outside of it is no boundary.
        for box in _ndimage().find_objects((found | true).astype(np.uint8)):
            found, true = found[box], true[box]
        directions = _distances_to(true)[found], _distances_to(found)[true]
        counts.append([int(n) for far in directions for n in ((far <= distance).sum(), far.size)])
        hausdorff.append(
            float(max(np.percentile(far, percentile) for far in directions))
            if all(far.size for far in directions)
            else float("nan")
        )
    return np.array(counts), hausdorff


def _distances_to(pixels: np.ndarray) -> np.ndarray:
    """The distance of every pixel to the nearest True one; infinity if there is none."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    distances: np.ndarray = _ndimage().distance_transform_edt(~pixels)
    return distances


def _ndimage() -> ModuleType:
    return import_extra("scipy.ndimage", "measures of boundaries")
