"""Average precision of objects, and the overlaps that scores of label images are computed from.

Label images are (H, W) integers, a number above 0 for each object and 0 for none. Which numbers
does not matter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Those of the 2018 Data Science Bowl."""


def average_precision(
    prediction: np.ndarray, target: np.ndarray, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> list[float]:
    """Compute TP / (TP + FP + FN) of the objects at each threshold of IoU; NaN without objects.

    An object is found if one of the prediction has an IoU with it above the threshold. The mean
    over the thresholds is an image's score in the 2018 Data Science Bowl. Both label images are 0
    on ignored pixels.

    Raises:
        ValueError: if a threshold is below 0.5.

    Source: Caicedo et al. 2019, "Nucleus segmentation across imaging experiments: the 2018 Data
    Science Bowl", Nature Methods 16.
    """
    if low := [threshold for threshold in thresholds if threshold < 0.5]:
        raise ValueError(
            f"average precision: got the IoU threshold {low[0]}, expected at least 0.5, above "
            "which an object matches one other at most"
        )
    overlaps = find_overlaps(prediction, target)
    union = overlaps.sizes[overlaps.i] + overlaps.true_sizes[overlaps.j] - overlaps.common
    objects, true_objects = overlaps.labels != 0, overlaps.true_labels != 0
    iou = (overlaps.common / union)[objects[overlaps.i] & true_objects[overlaps.j]]
    either = objects.sum() + true_objects.sum()
    hits = [int((iou > threshold).sum()) for threshold in thresholds]
    return [float(tp / (either - tp)) if either else float("nan") for tp in hits]


class Overlaps(NamedTuple):
    """The segments of two label images, and the pairs of them that overlap."""

    labels: np.ndarray
    sizes: np.ndarray  # in pixels
    true_labels: np.ndarray
    true_sizes: np.ndarray
    i: np.ndarray  # index into `labels` of each pair
    j: np.ndarray  # index into `true_labels`
    common: np.ndarray  # pixels of the overlap


def find_overlaps(prediction: np.ndarray, target: np.ndarray) -> Overlaps:
    """Find all pairs of overlapping segments of two integer arrays; each value is a segment."""
    # One sort of the pixels; everything else is about the pairs, which are few.
    rows, columns = prediction.astype(np.int64).ravel(), target.astype(np.int64).ravel()
    stride = columns.max(initial=0) + 1
    pairs, common = np.unique(rows * stride + columns, return_counts=True)
    labels, i = np.unique(pairs // stride, return_inverse=True)
    true_labels, j = np.unique(pairs % stride, return_inverse=True)
    sizes, true_sizes = np.bincount(i, common), np.bincount(j, common)
    return Overlaps(labels, sizes, true_labels, true_sizes, i, j, common)
