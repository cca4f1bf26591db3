"""Precision and recall at every threshold of a probability, from integer histograms."""

from dataclasses import dataclass

import numpy as np

from unet.data.classes import IGNORE_INDEX

NUM_BINS = 256
"""Of equal width from 0 to 1; the last one includes 1. Thresholds are the lower ends of bins."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores by threshold, each array (NUM_BINS,); NaN where there is no score.

    A pixel is predicted as foreground if its probability is at least the threshold.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    average_precision: float
    """Area under the steps: the sum of precision times the gain in recall, not interpolated."""
    best: int | None
    """Index of the highest F1, of equal ones that nearest to 0.5; None without foreground."""


def probability_counts(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count the pixels of background and foreground by the probability (H, W) of the foreground.

    The target (H, W) is 0 for background, 1 for foreground. Returns (2, NUM_BINS) int64; counts of
    several images can be added.
    """
    counted = target != IGNORE_INDEX
    bins = (probability[counted] * NUM_BINS).astype(np.int64).clip(0, NUM_BINS - 1)
    places = target[counted].astype(np.int64) * NUM_BINS + bins
    return np.bincount(places, minlength=2 * NUM_BINS).reshape(2, NUM_BINS)


def precision_recall(counts: np.ndarray) -> Curve:
    """Compute the curve from `probability_counts` (2, NUM_BINS)."""
    # All pixels in the threshold's bin and above are predicted as foreground.
    false_positives, true_positives = counts[:, ::-1].cumsum(1)[:, ::-1]
    false_negatives = counts[1].sum() - true_positives
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        precision = true_positives / (true_positives + false_positives)
        recall = true_positives / (true_positives + false_negatives)
        f1 = 2 * true_positives / (2 * true_positives + false_positives + false_negatives)
    thresholds = np.arange(NUM_BINS) / NUM_BINS
    gains = -np.diff(recall, append=0.0)
    area = float((gains * np.nan_to_num(precision)).sum())  # no gain where nothing is predicted
    best = max(range(NUM_BINS), key=lambda i: (f1[i], -abs(thresholds[i] - 0.5)))
    has_foreground = bool(counts[1].any())
    return Curve(
        thresholds=thresholds,
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        precision=precision,
        recall=recall,
        f1=f1,
        average_precision=area if has_foreground else float("nan"),
        best=best if has_foreground else None,
    )
