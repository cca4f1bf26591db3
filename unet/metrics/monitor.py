"""The scores of a validation, and the one of them that decides which epoch is best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unet.metrics.confusion import Scores


def score_columns(scores: Scores, classes: Sequence[str], monitor: str) -> dict[str, float]:
    """Return the scores that a validation reports by name, the monitored one among them."""
    by_class = {
        f"{score}_{name}": value
        for score, values in (("iou", scores.iou), ("dice", scores.dice))
        for name, value in zip(classes, values, strict=True)
    }
    columns = dict.fromkeys(["mean_iou", "mean_dice", "pixel_accuracy", *by_class, monitor])
    return {name: (vars(scores) | by_class)[name] for name in columns}


def monitored(row: Mapping[str, Any], monitor: str) -> float:
    """Return the monitored score of a validation, higher is better; NaN is worse than any other."""
    value = float(row[monitor])
    return -math.inf if math.isnan(value) else value


def best_row(history: Sequence[dict[str, Any]], monitor: str) -> dict[str, Any]:
    """Return the best validation, the first one of several; without scores the last epoch."""
    if monitor not in history[-1]:
        return history[-1]
    return max(history, key=lambda row: monitored(row, monitor))


def score_title(name: str) -> str:
    """Return the words for a score: mean IoU, IoU of <class>, pixel accuracy."""
    for score, title in (("iou", "IoU"), ("dice", "Dice")):
        if name.startswith(f"{score}_"):
            return f"{title} of {name.removeprefix(f'{score}_')}"
        name = name.replace(f"_{score}", f" {title}")
    return name.replace("_", " ")
