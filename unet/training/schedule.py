"""The learning rate of every step, as a function of the step and of the scores so far."""

import math
from collections.abc import Sequence

from unet.config.schema import ScheduleConfig


def learning_rate_factor(
    config: ScheduleConfig,
    step: int,
    num_steps: int,
    steps_per_epoch: int,
    scores: Sequence[float] = (),
) -> float:
    """Return what the highest learning rate is multiplied by.

    Args:
        config: which schedule.
        step: the number of the update, from 0.
        num_steps: of the run.
        steps_per_epoch: which the warm-up is counted in.
        scores: of the validations so far, higher is better.

    Source: one_cycle by Smith and Topin 2017, arXiv 1708.07120, with the numbers of torch's
    OneCycleLR: from 1/25 to 1 over three tenths of the steps, then to 4e-6, along cosines.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (num_steps - warmup)
    match config.name:
        case "cosine":
            return _cosine(1, 0, progress)
        case "polynomial":
            assert config.power is not None  # the config sees to it
            return float((1 - progress) ** config.power)
        case "one_cycle":
            peak, last = 0.3 * num_steps - 1, num_steps - 1
            if step < peak:
                return _cosine(1 / 25, 1, step / peak)
            return _cosine(1, 1 / 25e4, (step - peak) / (last - peak))
        case "constant":
            return 1.0
        case "plateau":
            assert config.factor is not None  # the config sees to it
            assert config.patience is not None
            return float(config.factor ** _plateaus(scores, config.patience))


def validations_without_gain(scores: Sequence[float]) -> int:
    """Return how many of the last scores are no better than the best before them."""
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """Count how often more than `patience` scores in a row brought no better one."""
    best, waited, count = -math.inf, 0, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited > patience:
            waited, count = 0, count + 1
    return count
