import itertools
import math

import numpy as np
import pytest
from skimage.metrics import hausdorff_distance

from unet.metrics.boundary import boundary, boundary_f1, boundary_measures
from unet.runtime import optional as extras


def boundary_counts(
    prediction: np.ndarray, target: np.ndarray, num_classes: int, distance: float
) -> np.ndarray:
    return boundary_measures(prediction, target, num_classes, distance)[0]


def hausdorff_distances(
    prediction: np.ndarray, target: np.ndarray, num_classes: int, percentile: float = 95
) -> list[float]:
    return boundary_measures(prediction, target, num_classes, 0, percentile)[1]


def random_ids(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and target (9, 13) of three classes in patches, with ignored pixels."""
    rng = np.random.default_rng(seed)
    target = np.kron(rng.integers(0, 3, (3, 5)), np.ones((3, 3), int))[:, :13]
    prediction = np.where(rng.random(target.shape) < 0.15, rng.integers(0, 3, target.shape), target)
    target[rng.random(target.shape) < 0.1] = 255
    return np.roll(prediction, 1, rng.integers(2)), target


def slow_boundary(ids: np.ndarray, class_id: int, counted: np.ndarray) -> list[tuple[int, int]]:
    height, width = ids.shape
    found = []
    for y, x in itertools.product(range(height), range(width)):
        neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        others = [
            ids[v, u] != class_id
            for v, u in neighbours
            if 0 <= v < height and 0 <= u < width and counted[v, u]
        ]
        if counted[y, x] and ids[y, x] == class_id and any(others):
            found.append((y, x))
    return found


def slow_distances(
    prediction: np.ndarray, target: np.ndarray, class_id: int
) -> tuple[list[float], list[float]]:
    found = slow_boundary(prediction, class_id, target != 255)
    truth = slow_boundary(target, class_id, target != 255)
    return (
        [min((math.dist(p, t) for t in truth), default=math.inf) for p in found],
        [min((math.dist(p, t) for p in found), default=math.inf) for t in truth],
    )


def test_a_square_in_a_square_has_hand_computed_boundary_scores() -> None:
    target, prediction = np.zeros((8, 9), int), np.zeros((8, 9), int)
    target[2:5, 2:5] = 1  # a ring of 8 boundary pixels
    prediction[2:5, 2:7] = 1  # two columns too many: a ring of 12
    # Of the 12, two are 1 away from the target's ring, in column 5, and three 2, in column 6. Of
    # the 8, the middle of the right column is within the predicted square, 1 away from its ring.
    counts = boundary_counts(prediction, target, 2, distance=1)
    assert counts[1].tolist() == [9, 12, 8, 8]
    assert boundary_f1(counts)[1] == pytest.approx(2 * (9 / 12) / (9 / 12 + 1))
    counts = boundary_counts(prediction, target, 2, distance=0)
    assert counts[1].tolist() == [7, 12, 7, 8]
    assert boundary_counts(prediction, target, 2, distance=2)[1].tolist() == [12, 12, 8, 8]
    assert hausdorff_distances(prediction, target, 2, percentile=100)[1] == 2
    # Sorted: 0 x 7, 1 x 2, 2 x 3; the 95th percentile is at index 0.95 * 11 = 10.45 of 0 to 11.
    assert hausdorff_distances(prediction, target, 2)[1] == 2
    # At index 0.75 * 11 = 8.25, between 1 and 2.
    assert hausdorff_distances(prediction, target, 2, percentile=75)[1] == pytest.approx(1.25)


def test_the_edge_of_the_image_is_no_boundary() -> None:
    ids = np.array([[1, 1, 0], [1, 1, 0]])
    everything = np.ones((2, 3), bool)
    assert boundary(ids, 1, everything).tolist() == [[False, True, False]] * 2
    assert not boundary(np.ones((2, 3), int), 1, everything).any()


@pytest.mark.parametrize("seed", range(8))
def test_boundary_scores_equal_those_of_slow_loops(seed: int) -> None:
    prediction, target = random_ids(seed)
    for distance in (0, 1, 1.5, math.sqrt(5)):
        counts = boundary_counts(prediction, target, 3, distance)
        for k, f1 in enumerate(boundary_f1(counts)):
            found, truth = slow_distances(prediction, target, k)
            p = sum(d <= distance for d in found) / len(found)
            r = sum(d <= distance for d in truth) / len(truth)
            assert f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    for percentile in (50, 95, 100):
        for k, result in enumerate(hausdorff_distances(prediction, target, 3, percentile)):
            found, truth = slow_distances(prediction, target, k)
            expected = max(np.percentile(found, percentile), np.percentile(truth, percentile))
            assert result == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_hausdorff_distance_equals_scikit_images(seed: int) -> None:
    prediction, target = random_ids(seed)
    counted = target != 255
    for k, distance in enumerate(hausdorff_distances(prediction, target, 3, percentile=100)):
        sides = [boundary(ids, k, counted) for ids in (prediction, target)]
        assert distance == pytest.approx(hausdorff_distance(*sides))


def test_what_is_predicted_on_ignored_pixels_changes_nothing() -> None:
    prediction, target = random_ids(1)
    other = np.where(target == 255, (prediction + 1) % 3, prediction)
    assert (other != prediction).sum() > 5
    first, second = (boundary_counts(ids, target, 3, 1) for ids in (prediction, other))
    assert np.array_equal(first, second)
    assert hausdorff_distances(prediction, target, 3) == hausdorff_distances(other, target, 3)


def test_a_boundary_on_one_side_only_scores_0_and_none_at_all_has_no_score() -> None:
    target, prediction = np.zeros((4, 5), int), np.zeros((4, 5), int)
    prediction[1, 1] = 1
    f1 = boundary_f1(boundary_counts(prediction, target, 3, 2))
    assert f1[:2] == [0, 0]
    assert math.isnan(f1[2])
    assert all(map(math.isnan, hausdorff_distances(prediction, target, 3)))
    f1 = boundary_f1(boundary_counts(target, prediction, 3, 2))
    assert f1[:2] == [0, 0]


def test_counts_of_images_add_up() -> None:
    (first, first_target), (second, second_target) = random_ids(1), random_ids(2)
    gap = np.full((9, 6), 255)  # wider than the distance
    both = boundary_counts(
        np.hstack([first, gap, second]), np.hstack([first_target, gap, second_target]), 3, 2
    )
    each = (
        boundary_counts(first, first_target, 3, 2),
        boundary_counts(second, second_target, 3, 2),
    )
    assert np.array_equal(both, sum(each))


def test_without_scipy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    ids = np.array([[0, 1]])
    with pytest.raises(ValueError, match=r"^measures of boundaries: needs scipy; .*\[metrics\]"):
        boundary_measures(ids, ids, 2, 1)
