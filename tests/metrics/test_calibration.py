import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unet.data.classes import IGNORE_INDEX
from unet.metrics.calibration import (
    FEWEST_IMAGES,
    calibration_errors,
    fit_temperature,
    largest_threshold,
    promised_threshold,
    reliability_counts,
    reliability_curve,
)


def test_the_calibration_error_is_the_difference_of_probability_and_frequency() -> None:
    probabilities = torch.tensor([[[0.25, 0.25, 0.25, 0.25, 0.9]], [[0.75, 0.75, 0.75, 0.75, 0.1]]])
    target = torch.tensor([[1, 1, 0, 0, IGNORE_INDEX]])
    counts = reliability_counts(probabilities, target)
    assert counts.shape == (3, 3, 15)
    assert calibration_errors(counts) == pytest.approx([0.25, 0.25, 0.25])
    curve = reliability_curve(counts[1])
    assert curve["pixels"][11] == 4
    assert (curve["mean_probability"][11], curve["fraction"][11]) == (0.75, 0.5)
    assert math.isnan(curve["fraction"][0])


def test_no_pixel_that_counts_gives_no_calibration_error() -> None:
    counts = reliability_counts(torch.full((2, 1, 1), 0.5), torch.tensor([[IGNORE_INDEX]]))
    assert all(math.isnan(error) for error in calibration_errors(counts))


def test_the_temperature_of_known_logits_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40_000, 3, generator=generator)
    target = logits.softmax(1).multinomial(1, generator=generator).flatten()
    assert fit_temperature(3 * logits, target) == pytest.approx(3, rel=0.05)


def test_the_temperature_of_perfect_logits_stays_within_bounds() -> None:
    logits = F.one_hot(torch.arange(3)).float()
    assert 0.009 < fit_temperature(logits, torch.arange(3)) < 1


def test_the_largest_threshold_misses_no_more_than_allowed() -> None:
    probability = torch.linspace(0.01, 1, 100)
    threshold = largest_threshold(probability, 0.05)
    assert int((probability < threshold).sum()) == 5


def test_the_promise_holds_for_95_of_100_new_images() -> None:
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(4000):
        *known, new = rng.uniform(size=40).tolist()
        threshold = promised_threshold(known)
        assert threshold is not None
        kept.append(new >= threshold)
    assert 0.94 < np.mean(kept) < 0.965


def test_too_few_images_give_no_promise() -> None:
    assert promised_threshold([0.5] * (FEWEST_IMAGES - 1)) is None
    assert promised_threshold([0.5] * FEWEST_IMAGES) == 0.5
