import math

import numpy as np
import pytest

from unet.metrics.precision_recall import NUM_BINS, precision_recall, probability_counts


def random_pixels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.choice([0, 1, 255], (30, 40), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    probability = (rng.random((30, 40)) + 0.5 * (target == 1)) / 1.5
    return probability.astype(np.float32), target


def test_pixels_are_counted_by_hand() -> None:
    probability = np.array([[0.0, 0.5, 1.0, 0.999, 0.2]], np.float32)
    target = np.array([[0, 1, 1, 0, 255]])
    counts = probability_counts(probability, target)
    assert counts.shape == (2, NUM_BINS)
    assert counts.sum() == 4
    assert counts[0, 0] == counts[0, 255] == counts[1, 128] == counts[1, 255] == 1


def test_counts_of_images_add_up() -> None:
    probability, target = random_pixels()
    counts = [
        probability_counts(probability[rows], target[rows]) for rows in (slice(9), slice(9, 99))
    ]
    assert (sum(counts) == probability_counts(probability, target)).all()


def test_every_threshold_equals_a_slow_count() -> None:
    probability, target = random_pixels()
    curve = precision_recall(probability_counts(probability, target))
    area, found_before = 0.0, 0.0
    for i in reversed(range(NUM_BINS)):
        predicted = probability >= i / NUM_BINS
        hits = (predicted & (target == 1)).sum()
        false = (predicted & (target == 0)).sum()
        missed = (~predicted & (target == 1)).sum()
        assert (curve.true_positives[i], curve.false_positives[i]) == (hits, false)
        assert curve.false_negatives[i] == missed
        assert curve.thresholds[i] == i / NUM_BINS
        assert curve.recall[i] == pytest.approx(hits / (hits + missed))
        if hits + false:
            assert curve.precision[i] == pytest.approx(hits / (hits + false))
            area += hits / (hits + false) * (curve.recall[i] - found_before)
        else:
            assert math.isnan(curve.precision[i])
        assert curve.f1[i] == pytest.approx(2 * hits / (2 * hits + false + missed))
        found_before = curve.recall[i]
    assert curve.average_precision == pytest.approx(area)
    assert curve.best is not None
    assert curve.f1[curve.best] == curve.f1.max()


def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probability, target = random_pixels(1)
    curve = precision_recall(probability_counts(probability, target))
    counted = target != 255
    binned = np.floor(probability[counted] * NUM_BINS) / NUM_BINS
    assert curve.average_precision == pytest.approx(
        metrics.average_precision_score(target[counted] == 1, binned)
    )
    precision, recall, thresholds = metrics.precision_recall_curve(target[counted] == 1, binned)
    places = (thresholds * NUM_BINS).astype(int)
    np.testing.assert_allclose(curve.precision[places], precision[:-1])
    np.testing.assert_allclose(curve.recall[places], recall[:-1])


def test_of_equally_good_thresholds_the_middle_one_is_best() -> None:
    counts = np.zeros((2, NUM_BINS), np.int64)
    counts[0, 3], counts[1, 250] = 7, 5
    curve = precision_recall(counts)
    assert curve.best == 128
    assert curve.f1[curve.best] == curve.average_precision == 1


@pytest.mark.parametrize("pixels", [0, 9])
def test_without_foreground_there_is_no_curve(pixels: int) -> None:
    counts = np.zeros((2, NUM_BINS), np.int64)
    counts[0, 3] = pixels
    curve = precision_recall(counts)
    assert curve.best is None
    assert math.isnan(curve.average_precision)
