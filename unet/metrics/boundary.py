"""Where classes end: boundary F1 and the Hausdorff distance.

Label images are (H, W) arrays of class ids. A boundary pixel of a class is a pixel of it that has
one of another class above, below, left or right of it. The edge of the image is no boundary. Pixels
that the target ignores are neither boundary pixels nor neighbours, in target and prediction alike.
Distances are Euclidean, in pixels, between centres.
"""

import numpy as np

from unet.runtime.optional import import_extra


def boundary(ids: np.ndarray, class_id: int, counted: np.ndarray) -> np.ndarray:
    """Return the boundary pixels of a class as bool (H, W), `counted` being those to look at."""
    inside, other = (ids == class_id) & counted, (ids != class_id) & counted
    beside = np.zeros_like(other)
    beside[1:] |= other[:-1]
    beside[:-1] |= other[1:]
    beside[:, 1:] |= other[:, :-1]
    beside[:, :-1] |= other[:, 1:]
    found: np.ndarray = inside & beside
    return found


def boundary_f1(counts: np.ndarray) -> list[float]:
    """Compute the boundary F1 of each class from counts (K, 4) of `boundary_measures`.

    The harmonic mean of the precision, the share of the prediction's boundary pixels near the
    target's, and the recall, the share of the target's near the prediction's. 0 where only one
    side has boundary pixels, NaN where neither has.

    Source: Csurka, Larlus and Perronnin 2013, "What is a good evaluation measure for semantic
    segmentation?", BMVC; they average over images, counts can do either.
    """
    result = []
    for near_prediction, prediction, near_target, target in counts.tolist():
        if prediction == target == 0:
            result.append(float("nan"))
        elif near_prediction == 0 or near_target == 0:
            result.append(0.0)
        else:
            precision, recall = near_prediction / prediction, near_target / target
            result.append(2 * precision * recall / (precision + recall))
    return result


def boundary_measures(
    prediction: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    distance: float,
    percentile: float = 95,
    ignore_index: int = 255,
) -> tuple[np.ndarray, list[float]]:
    """Count the boundary pixels near one of the other side; compute the Hausdorff distances.

    Each boundary pixel has a distance to the nearest one of the other side. The percentile of
    these is taken from prediction to target and from target to prediction, interpolated linearly,
    and the larger of the two is the Hausdorff distance.

    Args:
        prediction: class ids (H, W).
        target: class ids (H, W).
        num_classes: K.
        distance: in pixels; one that is exactly so far away counts as near.
        percentile: 100 for the Hausdorff distance proper, which a single pixel decides.
        ignore_index: the class id of the target whose pixels do not count.

    Returns:
        Counts (K, 4) int64: of the prediction's boundary pixels those near the target's, and all;
        of the target's those near the prediction's, and all. Those of images add up to those of a
        set. And the Hausdorff distance of each class in pixels, NaN where a side has no boundary
        pixel.

    Raises:
        ValueError: if scipy is not installed.

    Source: Huttenlocher, Klanderman and Rucklidge 1993, "Comparing images using the Hausdorff
    distance", IEEE TPAMI 15(9): the partial distance, by rank instead of maximum.
    """
    counted = target != ignore_index
    counts, distances = [], []
    for class_id in range(num_classes):
        found, truth = boundary(prediction, class_id, counted), boundary(target, class_id, counted)
        box = _box(found | truth)  # beyond it nothing is near
        found, truth = found[box], truth[box]
        # How far the prediction's boundary pixels are from the target's, and the other way.
        sides = _distances_to(truth)[found], _distances_to(found)[truth]
        counts.append([int(n) for far in sides for n in ((far <= distance).sum(), far.size)])
        distances.append(
            float(max(np.percentile(far, percentile) for far in sides))
            if all(far.size for far in sides)
            else float("nan")
        )
    return np.array(counts), distances


def _box(pixels: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold some."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _distances_to(pixels: np.ndarray) -> np.ndarray:
    """How far every pixel is from the nearest of some; infinity if there are none."""
    ndimage = import_extra("scipy.ndimage", "measures of boundaries")
    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    distances: np.ndarray = ndimage.distance_transform_edt(~pixels)
    return distances
