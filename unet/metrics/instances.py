"""Scores of segments and of instances: what is one object, what is another.

Label images are (H, W) integer arrays, one number above 0, of 32 bits, for each object, 0 for what
is between them (background, or the membrane between cells). Which numbers does not matter. Masks
are bool (H, W), True inside the objects. `counted` is bool (H, W), False for ignored pixels, None
for none; they are as if outside of the image: of no object, and nothing hangs together through
them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Those of the 2018 Data Science Bowl.
IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def average_precision(
    prediction: np.ndarray,
    target: np.ndarray,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> list[float]:
    """Compute TP / (TP + FP + FN) of the objects at each threshold of IoU.

    An object is found where one of the prediction has an IoU with it above the threshold. Their
    mean over the thresholds is the score of an image in the 2018 Data Science Bowl. NaN where
    neither image has an object.

    Args:
        prediction: label image, 0 on ignored pixels.
        target: label image, likewise.
        thresholds: at least 0.5, above which no object can match two others.

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
    overlap = _overlap(prediction, target)
    found, true = overlap.found[overlap.i], overlap.true[overlap.j]
    objects, true_objects = overlap.labels != 0, overlap.true_labels != 0
    iou = (overlap.common / (found + true - overlap.common))[
        objects[overlap.i] & true_objects[overlap.j]
    ]
    either = objects.sum() + true_objects.sum()
    hits = [int((iou > threshold).sum()) for threshold in thresholds]
    return [float(tp / (either - tp)) if either else float("nan") for tp in hits]


class _Overlap(NamedTuple):
    """Which segments share how many pixels."""

    labels: np.ndarray  # of the prediction
    found: np.ndarray  # their numbers of pixels
    true_labels: np.ndarray  # of the target
    true: np.ndarray  # their numbers of pixels
    i: np.ndarray  # index into `labels`, for each pair of segments that share pixels
    j: np.ndarray  # index into `true_labels`
    common: np.ndarray  # the number of pixels that they share


def _overlap(prediction: np.ndarray, target: np.ndarray) -> _Overlap:
    # One sort of the pixels; all else is of the pairs, which are few.
    rows, columns = prediction.astype(np.int64).ravel(), target.astype(np.int64).ravel()
    stride = columns.max(initial=0) + 1
    pairs, common = np.unique(rows * stride + columns, return_counts=True)
    labels, i = np.unique(pairs // stride, return_inverse=True)
    true_labels, j = np.unique(pairs % stride, return_inverse=True)
    found, true = np.zeros(labels.size, np.int64), np.zeros(true_labels.size, np.int64)
    np.add.at(found, i, common)
    np.add.at(true, j, common)
    return _Overlap(labels, found, true_labels, true, i, j, common)


def _counted(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    return (prediction, target) if counted is None else (prediction[counted], target[counted])
