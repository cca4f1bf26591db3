"""The learning rate of every step, as a function of the step and the scores so far."""

import math
from collections.abc import Sequence
from typing import Literal


def learning_rate_multiplier(
    step: int,
    *,
    num_steps: int,
    steps_per_epoch: int,
    scores: Sequence[float] = (),
    name: Literal["cosine", "polynomial", "one_cycle", "constant", "plateau"] = "cosine",
    warmup_epochs: float = 0.0,
    power: float | None = None,
    patience: int | None = None,
    factor: float | None = None,
) -> float:
    """Return the multiplier of the highest learning rate, from 0 to 1, for a step counted from 0.

    polynomial needs `power`; plateau multiplies the rate by `factor` after more than `patience`
    validations in a row without a better score. `scores` are those of the validations so far.

    Source: one_cycle by Smith and Topin 2017, arXiv 1708.07120, with the numbers of torch's
    OneCycleLR: from 1/25 to 1 over three tenths of the steps, then to 4e-6, along cosines.
    """
    warmup = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (num_steps - warmup)
    match name:
        case "cosine":
            return _cosine(1, 0, progress)
        case "polynomial":
            assert power is not None  # checked by the config
            return float((1 - progress) ** power)
        case "one_cycle":
            peak, last = 0.3 * num_steps - 1, num_steps - 1
            if step < peak:
                return _cosine(1 / 25, 1, step / peak)
            return _cosine(1, 1 / 25e4, (step - peak) / (last - peak))
        case "constant":
            return 1.0
        case "plateau":
            assert factor is not None  # checked by the config
            assert patience is not None
            return float(factor ** _num_plateaus(scores, patience))


def validations_without_gain(scores: Sequence[float]) -> int:
    """Return the number of validations since the best one."""
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _num_plateaus(scores: Sequence[float], patience: int) -> int:
    """Count how often more than `patience` scores in a row were no better than the best."""
    best, waited, count = -math.inf, 0, 0
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited > patience:
            waited, count = 0, count + 1
    return count
