"""Integer confusion matrices, and every score that is computed from them."""

from __future__ import annotations  # torch is imported by who has tensors: config needs the names

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unet.data.classes import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores over all counted pixels of a confusion matrix; NaN where there is no score.

    A class in neither target nor prediction has no score and is left out of means. A class in only
    one of the two scores 0, also its precision or recall where that is 0 / 0: never predicting a
    class must not raise a mean. As in scikit-learn with zero_division=0.

    mean_*: over the classes. micro_*: of sums over the classes, so that large classes count more.
    frequency_weighted_*: classes weighted by their pixels in the target. *_foreground: without
    class 0, the background.
    """

    # Of each class.
    iou: list[float]  # common pixels / pixels in target or prediction
    dice: list[float]  # 2 common pixels / (pixels in target + in prediction), also called F1
    precision: list[float]  # common pixels / pixels in prediction
    recall: list[float]  # common pixels / pixels in target
    pixel_accuracy: float  # fraction of right pixels, equal to micro Dice, precision and recall
    mean_iou: float
    mean_dice: float
    mean_precision: float
    mean_recall: float  # also called balanced accuracy, if every class is in the target
    mean_iou_foreground: float
    mean_dice_foreground: float
    mean_precision_foreground: float
    mean_recall_foreground: float
    micro_iou: float
    micro_iou_foreground: float
    micro_dice_foreground: float
    micro_precision_foreground: float
    micro_recall_foreground: float
    frequency_weighted_iou: float
    frequency_weighted_dice: float


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each target class (row) that were predicted as each class (column).

    Prediction and target are class ids of any one shape. Returns (K, K) int64; matrices of several
    images can be added.
    """
    counted = target != IGNORE_INDEX
    pairs = target[counted].long() * num_classes + prediction[counted].long()
    return pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(matrix: Tensor) -> Scores:
    """Compute every score of a confusion matrix (K, K), rows target, columns prediction."""
    values: dict[str, Any] = {name: x.tolist() for name, x in score_values(matrix).items()}
    return Scores(**values)


def score_values(matrices: Tensor) -> dict[str, Tensor]:
    """Compute the scores of matrices (..., K, K): float64 (..., K) of each class, or (...)."""
    counts = matrices.double()
    right, target, predicted = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)
    by_class = _ratios(right, target, predicted)
    micro = _ratios(right.sum(-1), target.sum(-1), predicted.sum(-1))
    foreground = _ratios(*(pixels[..., 1:].sum(-1) for pixels in (right, target, predicted)))
    frequency = target / target.sum(-1, keepdim=True)
    # A class without a score is not in the target, and has no weight. NaN if no pixel counts.
    weighted = {name: (frequency * by_class[name].nan_to_num()).sum(-1) for name in ("iou", "dice")}
    return {
        **by_class,
        "pixel_accuracy": micro["recall"],
        **{f"mean_{name}": x.nanmean(-1) for name, x in by_class.items()},
        **{f"mean_{name}_foreground": x[..., 1:].nanmean(-1) for name, x in by_class.items()},
        "micro_iou": micro["iou"],
        **{f"micro_{name}_foreground": x for name, x in foreground.items()},
        **{f"frequency_weighted_{name}": x for name, x in weighted.items()},
    }


def spread(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, sample standard deviation and number of NaN over the first dimension.

    NaN is left out. The mean of no value is NaN, and the deviation of less than two.
    """
    mean, missing = values.nanmean(0), values.isnan().sum(0)
    squares = (values - mean).square().nansum(0)
    # 0 / 0 is NaN.
    return mean, (squares / (len(values) - missing - 1).clamp(min=0)).sqrt(), missing


def _ratios(right: Tensor, target: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """The four scores from numbers of pixels; 0 / 0 is NaN."""
    return {
        "iou": right / (target + predicted - right),
        "dice": 2 * right / (target + predicted),
        # 0 / 1 where only the other one has pixels of the class.
        "precision": right / predicted.maximum(target.clamp(max=1)),
        "recall": right / target.maximum(predicted.clamp(max=1)),
    }


def row_fractions(matrix: np.ndarray) -> np.ndarray:
    """Divide each row of a confusion matrix (K, K) by its sum; NaN where the sum is 0."""
    with np.errstate(invalid="ignore"):
        fractions: np.ndarray = matrix / matrix.sum(1, keepdims=True)
    return fractions
