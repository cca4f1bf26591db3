"""Integer confusion matrices, and every score from them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Count the pixels of each target class (row) that were predicted as each class (column).

    Args:
        prediction: class ids below `num_classes`, any shape.
        target: class ids of the same shape; pixels of `ignore_index` are not counted.
        num_classes: K.
        ignore_index: the class id whose pixels do not count.

    Returns:
        (K, K) int64. Matrices of parts add up to that of the whole.
    """
    counted = target != ignore_index
    pairs = target[counted].long() * num_classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores over all counted pixels of a confusion matrix; NaN where there is none.

    A class in neither target nor prediction has no score. One in only one of them scores 0, its
    precision though nothing was predicted, its recall though there was nothing to find: or a mean
    would reward who never predicts a class. So a mean is over the same classes for all scores, all
    alike; `_foreground` leaves out class 0, the background. Micro scores divide sums over classes,
    so that large classes count for more. All as in scikit-learn with zero_division=0.
    """

    iou: list[float]
    """Of each class: common pixels by those in target or prediction."""
    dice: list[float]
    """Of each class: twice the common pixels by the sum of target's and prediction's; F1."""
    precision: list[float]
    """Of each class: share of the predicted pixels that are right."""
    recall: list[float]
    """Of each class: share of the target's pixels that were found."""
    pixel_accuracy: float
    """Share of the counted pixels that are right; also micro Dice, precision and recall."""
    mean_iou: float
    """Over the classes, background included."""
    mean_dice: float
    """Over the classes, background included."""
    mean_precision: float
    """Over the classes, background included."""
    mean_recall: float
    """Over the classes, background included; where all of them are in the target, also called mean
    or balanced accuracy."""
    mean_iou_foreground: float
    """Over the classes without the background."""
    mean_dice_foreground: float
    """Over the classes without the background."""
    mean_precision_foreground: float
    """Over the classes without the background."""
    mean_recall_foreground: float
    """Over the classes without the background."""
    micro_iou: float
    """Of the sums over all classes, background included."""
    micro_iou_foreground: float
    """Of the sums over the classes without the background."""
    micro_dice_foreground: float
    """Of the sums over the classes without the background."""
    micro_precision_foreground: float
    """Share of the pixels predicted as foreground whose class is right."""
    micro_recall_foreground: float
    """Share of the target's foreground pixels whose class was found."""
    frequency_weighted_iou: float
    """Mean IoU, each class weighted by its pixels in the target, background included."""
    frequency_weighted_dice: float
    """Mean Dice, each class weighted by its pixels in the target, background included."""


def scores(matrix: Tensor) -> Scores:
    """Compute every score from a confusion matrix (K, K), rows target, columns prediction."""
    values: dict[str, Any] = {name: x.tolist() for name, x in score_values(matrix).items()}
    return Scores(**values)


def spread(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, sample standard deviation and number of NaN over the first dimension.

    NaN is left out; a mean is NaN without any value, a deviation below two of them.
    """
    mean, without = values.nanmean(0), values.isnan().sum(0)
    squares = (values - mean).square().nansum(0)
    # 0 / 0 is NaN: no spread.
    return mean, (squares / (len(values) - without - 1).clamp(min=0)).sqrt(), without


def score_values(matrices: Tensor) -> dict[str, Tensor]:
    """Compute every score of matrices (..., K, K): (..., K) for each class, else (...).

    Returns:
        By the names of `Scores`, float64, NaN where there is none.
    """
    counts = matrices.double()
    right, target, predicted = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)
    by_class = _ratios(right, target, predicted)
    micro = _ratios(right.sum(-1), target.sum(-1), predicted.sum(-1))
    foreground = _ratios(*(part[..., 1:].sum(-1) for part in (right, target, predicted)))
    frequency = target / target.sum(-1, keepdim=True)
    # A class without a score is not in the target, and has no weight; NaN if no pixel counts.
    weighted = {name: (frequency * by_class[name].nan_to_num()).sum(-1) for name in ("iou", "dice")}
    return {
        **by_class,
        "pixel_accuracy": micro["recall"],
        **{f"mean_{name}": value.nanmean(-1) for name, value in by_class.items()},
        **{f"mean_{name}_foreground": x[..., 1:].nanmean(-1) for name, x in by_class.items()},
        "micro_iou": micro["iou"],
        **{f"micro_{name}_foreground": value for name, value in foreground.items()},
        **{f"frequency_weighted_{name}": value for name, value in weighted.items()},
    }


def _ratios(right: Tensor, target: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """The four scores of numbers of pixels; 0 / 0 is NaN: no score."""
    return {
        "iou": right / (target + predicted - right),
        "dice": 2 * right / (target + predicted),
        # Where only the other side has some: 0 / 1.
        "precision": right / torch.maximum(predicted, target.clamp(max=1)),
        "recall": right / torch.maximum(target, predicted.clamp(max=1)),
    }
