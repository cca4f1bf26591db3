import math

import torch

from unet.metrics.confusion import scores
from unet.metrics.monitor import best_row, monitored, score_columns, score_title


def test_columns_are_means_scores_of_each_class_and_the_monitored_score() -> None:
    result = scores(torch.tensor([[3, 1], [0, 4]]))
    columns = score_columns(result, ["ground", "box"], "mean_recall")
    assert list(columns) == [
        "mean_iou", "mean_dice", "pixel_accuracy",
        "iou_ground", "iou_box", "dice_ground", "dice_box", "mean_recall",
    ]  # fmt: skip
    assert columns["iou_box"] == 4 / 5
    assert columns["dice_box"] == 8 / 9
    assert columns["mean_recall"] == result.mean_recall


def test_the_first_of_the_best_rows_is_best_and_nan_never() -> None:
    values = [math.nan, 0.2, 0.5, 0.5, math.nan]
    history = [{"epoch": i, "iou_box": value} for i, value in enumerate(values)]
    assert best_row(history, "iou_box")["epoch"] == 2
    assert monitored(history[0], "iou_box") == -math.inf
    assert best_row(history[:1], "iou_box")["epoch"] == 0


def test_scores_have_titles() -> None:
    names = ["mean_iou", "pixel_accuracy", "iou_cell_2", "dice_box", "mean_dice_foreground"]
    assert [score_title(name) for name in names] == [
        "mean IoU", "pixel accuracy", "IoU of cell_2", "Dice of box", "mean Dice foreground",
    ]  # fmt: skip
