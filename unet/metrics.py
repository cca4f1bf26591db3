"""One integer confusion matrix, and every score from it."""

from dataclasses import dataclass

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
    """Scores over all counted pixels; one number for each class, NaN where it has none.

    A class that occurs neither in target nor prediction has no IoU and no Dice; one that was
    never predicted no precision; one that is not in the target no recall.
    """

    iou: list[float]
    dice: list[float]
    precision: list[float]
    recall: list[float]
    pixel_accuracy: float
    """Share of the counted pixels that are right."""
    mean_iou: float
    """Mean IoU over the classes that have one, background included."""
    mean_dice: float
    """Mean Dice over the classes that have one, background included."""


def scores(matrix: Tensor) -> Scores:
    """Compute every score from a confusion matrix (K, K), rows target, columns prediction."""
    counts = matrix.double()
    right, target, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    # 0 / 0 is NaN: no score.
    iou = right / (target + predicted - right)
    dice = 2 * right / (target + predicted)
    return Scores(
        iou=iou.tolist(),
        dice=dice.tolist(),
        precision=(right / predicted).tolist(),
        recall=(right / target).tolist(),
        pixel_accuracy=float(right.sum() / counts.sum()),
        mean_iou=float(iou.nanmean()),
        mean_dice=float(dice.nanmean()),
    )
