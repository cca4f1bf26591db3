import math

import numpy as np
import pytest

from unet.metrics.instances import IOU_THRESHOLDS, average_precision


def random_labels(seed: int, shape: tuple[int, int] = (7, 11)) -> tuple[np.ndarray, ...]:
    """Prediction, target and counted: patches of labels with 0 between, not in order."""
    rng = np.random.default_rng(seed)
    names = np.array([0, 7, 3, 12, 5])
    target = np.kron(names[rng.integers(0, 5, (3, 4))], np.ones((3, 3), int))[
        : shape[0], : shape[1]
    ]
    noise = names[rng.integers(0, 5, shape)]
    prediction = np.where(rng.random(shape) < 0.3, noise, np.roll(target, 1, 1))
    return prediction, target, rng.random(shape) < 0.85


def test_average_precision_equals_a_hand_computed_one() -> None:
    target, prediction = np.zeros((4, 10), int), np.zeros((4, 10), int)
    target[0, :10] = 1
    prediction[0, 2:] = 5  # IoU 8 / 10
    target[1, :5] = 2
    prediction[1, :3] = 4  # IoU 3 / 5
    target[2, :4] = 3
    prediction[2, 2:6] = 9  # IoU 2 / 6
    # Found at 0.5 are two of three and three; at 0.6 the second is no longer above.
    expected = [2 / 4] * 2 + [1 / 5] * 4 + [0] * 4
    assert average_precision(prediction, target) == pytest.approx(expected)


def test_two_halves_of_an_object_find_it_once_at_most() -> None:
    target, halves = np.ones((1, 10), int), np.array([[1] * 5 + [2] * 5])
    assert average_precision(halves, target, [0.5]) == [0]
    unequal = np.array([[1] * 4 + [2] * 6])
    assert average_precision(unequal, target, [0.5]) == [1 / 2]


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_equals_that_of_sets_of_pixels(seed: int) -> None:
    prediction, target, _ = random_labels(seed)
    found, true = (
        [{p for p in np.ndindex(labels.shape) if labels[p] == k} for k in np.unique(labels) if k]
        for labels in (prediction, target)
    )
    thresholds = (*IOU_THRESHOLDS, 0.5 + 1 / 30)
    for threshold, result in zip(
        thresholds, average_precision(prediction, target, thresholds), strict=True
    ):
        hits = [[len(f & t) / len(f | t) > threshold for t in true] for f in found]
        tp = sum(map(any, hits))
        assert tp == sum(map(any, zip(*hits, strict=True)))
        assert result == pytest.approx(tp / (len(true) + len(found) - tp))


def test_without_objects_there_is_no_average_precision_and_with_one_side_it_is_0() -> None:
    nothing, one = np.zeros((2, 3), int), np.ones((2, 3), int)
    assert all(map(math.isnan, average_precision(nothing, nothing)))
    assert average_precision(one, nothing) == average_precision(nothing, one) == [0] * 10
    assert average_precision(one, one) == [1] * 10


def test_thresholds_that_allow_two_matches_are_refused() -> None:
    one = np.ones((2, 3), int)
    with pytest.raises(ValueError, match=r"got the IoU threshold 0\.4, expected at least 0\.5"):
        average_precision(one, one, [0.5, 0.4])
