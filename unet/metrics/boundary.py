"""Scores of class boundaries, which need scipy: boundary F1 and the Hausdorff distance.

A boundary pixel of a class is a pixel of it with a pixel of another class above, below, left or
right. The edge of the image is no boundary. Pixels that the target ignores are neither boundary
pixels nor neighbours, in target and prediction alike. Distances are Euclidean, in pixels, between
pixel centres.
"""

import numpy as np

from unet.data.classes import IGNORE_INDEX
from unet.runtime.optional import import_extra


def boundary(ids: np.ndarray, class_id: int, counted: np.ndarray) -> np.ndarray:
    """Return the boundary pixels of a class as bool (H, W); only `counted` pixels (H, W) exist."""
    inside, other = (ids == class_id) & counted, (ids != class_id) & counted
    ndimage = import_extra("scipy.ndimage", "measures of boundaries")
    return np.asarray(inside & ndimage.binary_dilation(other))


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
    return list(map(float, f1))


def boundary_measures(
    prediction: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    distance: float,
    percentile: float = 95,
) -> tuple[np.ndarray, list[float]]:
    """Compare the boundaries of each class in two arrays of class ids (H, W).

    Returns counts (K, 4) int64, which can be added over images, and K Hausdorff distances in
    pixels. The counts are those of predicted boundary pixels at most `distance` pixels from true
    ones, all predicted ones, true ones near predicted ones, and all true ones. The Hausdorff
    distance is a percentile (interpolated linearly) of the distances from the boundary pixels of
    one side to the nearest of the other, the larger one of both directions: the usual distance for
    100, which a single pixel decides. It is NaN where a side has no boundary pixel.

    Source: Huttenlocher, Klanderman and Rucklidge 1993, "Comparing images using the Hausdorff
    distance", IEEE TPAMI 15(9): the partial distance, by rank instead of maximum.
    """
    counted = target != IGNORE_INDEX
    ndimage = import_extra("scipy.ndimage", "measures of boundaries")
    counts, hausdorff = [], []
    for class_id in range(num_classes):
        found, true = boundary(prediction, class_id, counted), boundary(target, class_id, counted)
        # Distances only in the bounding box: outside of it is no boundary.
        for box in ndimage.find_objects((found | true).astype(np.uint8)):
            found, true = found[box], true[box]
        directions = [
            ndimage.distance_transform_edt(~to)[start] if to.any() else np.full(start.sum(), np.inf)
            for start, to in ((found, true), (true, found))
        ]
        counts.append([int(n) for far in directions for n in ((far <= distance).sum(), far.size)])
        both = all(far.size for far in directions)
        farthest = [np.percentile(far, percentile) for far in directions if both]
        hausdorff.append(float(max(farthest, default=np.nan)))
    return np.array(counts), hausdorff
