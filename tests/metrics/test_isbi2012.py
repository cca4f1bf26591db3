import itertools
import math
from collections import Counter

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from unet.data.label_images import connected_components
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import (
    info_score,
    membrane_scores,
    pixel_error,
    rand_error,
    rand_score,
    thin_borders,
    warp,
    warping_error,
)

FOUR, EIGHT = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), int)


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


def random_masks(seed: int, shape: tuple[int, int] = (14, 19)) -> tuple[np.ndarray, ...]:
    """Prediction, target and counted: blobs, the prediction's a little displaced and noisy."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    target = field > np.quantile(field, 0.35)
    prediction = np.roll(field, 1, 0) + rng.normal(size=shape) * 0.05 > np.quantile(field, 0.4)
    return prediction, target, rng.random(shape) < 0.9


def slow_thinning(labels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """A queue of pixels: those next to an object first, a step further in each round."""
    outside = set() if counted is None else {p for p in np.ndindex(labels.shape) if not counted[p]}
    state = {place: int(label) for place, label in np.ndenumerate(labels) if label}

    def neighbours(y: int, x: int) -> list[tuple[int, int]]:
        places = [(y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)]
        return [p for p in places if 0 <= p[0] < labels.shape[0] and 0 <= p[1] < labels.shape[1]]

    while True:
        waiting = [p for p in np.ndindex(labels.shape) if p not in state and p not in outside]
        ring = [p for p in waiting if any(q in state for q in neighbours(*p))]
        if not ring:
            return np.array([state.get(p, 0) for p in np.ndindex(labels.shape)]).reshape(
                labels.shape
            )
        for p in sorted(ring, key=lambda p: sum(p) % 2):
            objects = {state[q] for q in neighbours(*p) if state.get(q)}
            state[p] = objects.pop() if len(objects) == 1 else 0


def test_a_thick_border_is_thinned_to_its_middle() -> None:
    labels = np.array([[1, 1, 0, 0, 0, 0, 0, 2], [1, 1, 0, 0, 0, 0, 0, 2]])
    assert thin_borders(labels).tolist() == [[1, 1, 1, 1, 0, 2, 2, 2]] * 2


def test_a_border_of_even_width_is_thinned_to_one_pixel_by_turns() -> None:
    labels = np.array([[3, 0, 0, 8], [3, 0, 0, 8]])
    assert thin_borders(labels).tolist() == [[3, 0, 8, 8], [3, 3, 0, 8]]


def test_objects_do_not_grow_into_ignored_pixels_nor_through_them() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 0, 0, 2]])
    counted = np.array([[True, True, False, True, True, True, True, True]])
    assert thin_borders(labels, counted).tolist() == [[1, 1, 0, 2, 2, 2, 2, 2]]


def test_background_around_a_single_object_becomes_object() -> None:
    labels = np.zeros((5, 6), int)
    assert thin_borders(labels).tolist() == labels.tolist()
    labels[2, 1] = 4
    assert (thin_borders(labels) == 4).all()


@pytest.mark.parametrize("seed", range(12))
def test_thinning_equals_a_slow_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = connected_components(rng.random((13, 18)) < rng.uniform(0.02, 0.5))
    assert np.array_equal(thin_borders(labels), slow_thinning(labels))
    counted = rng.random(labels.shape) < 0.8
    labels[~counted] = 0
    assert np.array_equal(thin_borders(labels, counted), slow_thinning(labels, counted))


def test_thinned_objects_contain_what_they_were_and_never_touch() -> None:
    labels = connected_components(np.random.default_rng(3).random((60, 81)) < 0.1)
    thinned = thin_borders(labels)
    assert (thinned[labels > 0] == labels[labels > 0]).all()
    assert (thinned == 0).mean() < 0.5 < (labels == 0).mean()
    for a, b in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
        assert ((a == b) | (a == 0) | (b == 0)).all()


def test_rand_scores_of_a_split_are_hand_computed_ones() -> None:
    # The target's segments of 4 and 2 pixels; the first is found in halves.
    target = np.array([[1, 1, 1, 1, 2, 2, 0]])
    prediction = np.array([[5, 5, 9, 9, 3, 3, 3]])
    # Squares of pixels: common 4 + 4 + 4, prediction as much, target 16 + 4.
    assert rand_score(prediction, target) == pytest.approx(2 * 12 / (12 + 20))
    # Entropies: the prediction's log 3, the target's of 2/3 and 1/3, which it determines.
    h = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert info_score(prediction, target) == pytest.approx(2 * h / (math.log(3) + h))
    # Pairs: common 1 + 1 + 1, prediction 1 + 1 + 3, target 6 + 1; the 0 is one of 3s.
    assert rand_error(prediction, target) == pytest.approx(1 - 2 * 3 / (5 + 7))


def test_each_pixel_without_predicted_segment_is_a_segment() -> None:
    target = np.array([[1, 1, 1, 1]])
    prediction = np.array([[0, 0, 6, 6]])
    assert rand_score(prediction, target) == pytest.approx(2 * (1 + 1 + 4) / (1 + 1 + 4 + 16))
    assert rand_score(prediction, target) == rand_score(np.array([[8, 9, 6, 6]]), target)
    assert info_score(prediction, np.array([[1, 1, 2, 2]])) == pytest.approx(
        2 * math.log(2) / (math.log(2) + 1.5 * math.log(2))
    )


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_segments_equal_those_of_loops_over_pairs_of_pixels(seed: int) -> None:
    prediction, target, counted = random_labels(seed)
    places = [p for p in np.ndindex(target.shape) if counted[p]]
    same = Counter()
    for p, q in itertools.combinations(places, 2):
        found, true = bool(prediction[p] == prediction[q]), bool(target[p] == target[q])
        same.update(found=found, true=true, both=found and true)
    precision, recall = same["both"] / same["found"], same["both"] / same["true"]
    f_score = 2 * precision * recall / (precision + recall)
    assert rand_error(prediction, target, counted) == pytest.approx(1 - f_score)

    names = [(int(prediction[p]) or p, int(target[p])) for p in places if target[p]]
    same = Counter()
    for (a, b), (c, d) in itertools.product(names, names):
        same.update(found=a == c, true=b == d, both=a == c and b == d)
    assert rand_score(prediction, target, counted) == pytest.approx(
        2 * same["both"] / (same["found"] + same["true"])
    )

    def entropy(items: list) -> float:
        return -sum(n / len(items) * math.log(n / len(items)) for n in Counter(items).values())

    h, h_true = entropy([a for a, _ in names]), entropy([b for _, b in names])
    mutual = h + h_true - entropy(names)
    assert info_score(prediction, target, counted) == pytest.approx(mutual / ((h + h_true) / 2))


@pytest.mark.parametrize("seed", range(3))
def test_the_rand_error_equals_scikit_images(seed: int) -> None:
    prediction, target, _ = random_labels(seed)
    error, _, _ = skimage.metrics.adapted_rand_error(target, prediction, ignore_labels=())
    assert rand_error(prediction, target) == pytest.approx(error)
    error, _, _ = skimage.metrics.adapted_rand_error(target, prediction, ignore_labels=(0,))
    assert rand_error(prediction, target, target > 0) == pytest.approx(error)


@pytest.mark.parametrize("seed", range(3))
def test_the_information_score_equals_scikit_learns_and_scikit_images(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, target, _ = random_labels(seed)
    prediction[prediction == 0] = 20
    inside = target > 0
    expected = metrics.normalized_mutual_info_score(target[inside], prediction[inside])
    assert info_score(prediction, target) == pytest.approx(expected)
    # The two terms of the variation of information, H(S | T) and H(T | S), in bits.
    more, less = skimage.metrics.variation_of_information(target[inside], prediction[inside])
    fractions = [fractions_of(labels[inside]) for labels in (prediction, target)]
    bits = [-(p * np.log2(p)).sum() for p in fractions]
    assert info_score(prediction, target) == pytest.approx(1 - (more + less) / sum(bits))


def fractions_of(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_counts=True)[1] / labels.size


def test_equal_segmentations_score_1_under_any_numbers() -> None:
    _, target, _ = random_labels(0)
    other = np.select([target == 7, target == 3, target > 0], [3, 900, target], 0)
    assert rand_score(other, target) == pytest.approx(1)
    assert info_score(other, target) == pytest.approx(1)
    assert rand_error(other, target) == 0


def test_without_segments_there_is_no_score() -> None:
    nothing, one = np.zeros((2, 3), int), np.ones((2, 3), int)
    assert math.isnan(rand_score(one, nothing))
    assert math.isnan(info_score(one, nothing))
    assert math.isnan(info_score(one, one))
    assert rand_score(one, one) == 1
    ignored = np.zeros((2, 3), bool)
    assert math.isnan(rand_score(one, one, ignored))
    assert math.isnan(rand_error(one, one, ignored))


def topology(mask: np.ndarray) -> tuple[int, int]:
    """Number of 4-connected objects, and of 8-connected components of the rest, the outside one."""
    padded = np.pad(mask, 1)
    return ndimage.label(padded, FOUR)[1], ndimage.label(~padded, EIGHT)[1]


def is_simple(patch: np.ndarray) -> bool:
    """Bertrand and Malandain 1994: one object next to the pixel, one background around it."""
    objects = patch.copy()
    objects[1, 1] = False
    labels = ndimage.label(objects, FOUR)[0]
    neighbours = {int(labels[p]) for p in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}
    rest = ~patch
    rest[1, 1] = False
    return len(neighbours) == 1 and ndimage.label(rest, EIGHT)[1] == 1


def slow_warp(mask: np.ndarray, towards: np.ndarray, movable: np.ndarray) -> np.ndarray:
    warped = np.pad(mask, 1)
    places = sorted(np.ndindex(mask.shape), key=lambda p: (p[0] % 2, p[1] % 2))
    changed = True
    while changed:
        changed = False
        for y, x in places:
            differs = movable[y, x] and warped[y + 1, x + 1] != towards[y, x]
            if differs and is_simple(warped[y : y + 3, x : x + 3]):
                warped[y + 1, x + 1], changed = towards[y, x], True
    return warped[1:-1, 1:-1]


def test_every_neighbourhood_warps_where_its_centre_is_simple() -> None:
    for bits in itertools.product([False, True], repeat=8):
        patch = np.insert(np.array(bits), 4, False).reshape(3, 3)
        centre = np.zeros((3, 3), bool)
        centre[1, 1] = True
        assert warp(patch, patch | centre, centre)[1, 1] == is_simple(patch)
        assert warp(patch | centre, patch, centre)[1, 1] != is_simple(patch)


@pytest.mark.parametrize("seed", range(8))
def test_warping_equals_a_slow_loop(seed: int) -> None:
    prediction, target, counted = random_masks(seed)
    expected = slow_warp(target, prediction, counted)
    assert np.array_equal(warp(target, prediction, counted), expected)
    assert warping_error(prediction, target, counted) == pytest.approx(
        (expected != prediction)[counted].sum() / counted.sum()
    )


@pytest.mark.parametrize("seed", range(8))
def test_warping_keeps_the_topology_and_goes_as_far_as_it_can(seed: int) -> None:
    prediction, target, _ = random_masks(seed, (40, 53))
    warped = warp(target, prediction)
    assert topology(warped) == topology(target)
    assert (warped != prediction).sum() < (target != prediction).sum()
    padded = np.pad(warped, 1)
    for y, x in zip(*np.nonzero(warped != prediction), strict=True):
        assert not is_simple(padded[y : y + 3, x : x + 3])


def test_a_moved_border_costs_nothing_and_a_merger_its_opening() -> None:
    target = np.ones((9, 12), bool)
    target[:, 5] = False
    elsewhere = np.ones((9, 12), bool)
    elsewhere[:5, 4] = elsewhere[4:, 5] = False
    assert warping_error(elsewhere, target) == 0
    # Two columns away it does not touch its old place: the old one stays (9), and the new one
    # grows from the edges until one pixel more would split the object.
    assert warping_error(np.roll(target, 2, 1), target) == pytest.approx(10 / 108)
    merged = target.copy()
    merged[2:6, 5] = True  # closing any of the four joins the objects
    assert warping_error(merged, target) == pytest.approx(4 / 108)
    lost = np.zeros((9, 12), bool)
    lost[:, 6:] = True  # the left object is gone: one pixel of it must stay
    assert warping_error(lost, target) == pytest.approx(1 / 108)


def test_ignored_pixels_do_not_count_in_warping() -> None:
    prediction, target = np.ones((3, 5), bool), np.ones((3, 5), bool)
    prediction[1, 2] = False  # a hole more
    counted = np.ones((3, 5), bool)
    assert warping_error(prediction, target, counted) == pytest.approx(1 / 15)
    counted[1, 2] = False
    assert warping_error(prediction, target, counted) == 0
    assert math.isnan(warping_error(prediction, target, ~np.ones((3, 5), bool)))


def test_the_pixel_error_is_the_fraction_of_counted_pixels_that_differ() -> None:
    prediction, target = np.array([[True, True, False]]), np.array([[True, False, True]])
    assert pixel_error(prediction, target) == pytest.approx(2 / 3)
    assert pixel_error(prediction, target, np.array([[True, True, False]])) == 1 / 2
    assert math.isnan(pixel_error(prediction, target, np.zeros((1, 3), bool)))


def test_the_measures_of_isbi_2012_are_combined_correctly() -> None:
    # Two objects of 20 pixels; the prediction's membrane between them is three times as thick.
    target = np.ones((5, 9), bool)
    target[:, 4] = False
    prediction = np.ones((5, 9), bool)
    prediction[:, 3:6] = False
    result = membrane_scores(prediction, target)
    assert result["pixel_error"] == pytest.approx(10 / 45)
    assert result["warping_error"] == 0
    assert (
        result["thinned_rand_score"] == result["thinned_info_score"] == 1
    )  # once the border is thinned
    # Before: two objects of 15 pixels and 10 pixels alone, against two objects of 20.
    assert result["foreground_rand_error"] == pytest.approx(1 - 2 * (450 + 10) / (450 + 10 + 800))
    # Overlaps: twice 15 pixels, and of the predicted membrane three times 5.
    pairs = {n: n * (n - 1) for n in (5, 15, 20)}
    assert result["rand_error"] == pytest.approx(
        1 - 2 * (2 * pairs[15] + 3 * pairs[5]) / (3 * pairs[15] + 2 * pairs[20] + pairs[5])
    )


@pytest.mark.parametrize("seed", range(3))
def test_ignored_pixels_count_in_none_of_the_measures_of_isbi_2012(seed: int) -> None:
    prediction, target, counted = random_masks(seed)
    result = membrane_scores(prediction, target, counted)
    assert result["pixel_error"] == pytest.approx((prediction != target)[counted].mean())
    cut, true_cut = prediction & counted, target & counted
    objects, true = ndimage.label(cut, FOUR)[0], ndimage.label(true_cut, FOUR)[0]
    thinned = slow_thinning(objects, counted)
    assert result["rand_error"] == rand_error(objects[counted], true[counted])
    assert result["foreground_rand_error"] == 1 - rand_score(objects[counted], true[counted])
    assert result["thinned_rand_score"] == rand_score(thinned[counted], true[counted])
    assert result["thinned_info_score"] == info_score(thinned[counted], true[counted])
    warped = slow_warp(true_cut, cut, counted)
    assert result["warping_error"] == pytest.approx((warped != cut)[counted].mean())
    everything = membrane_scores(prediction, target)
    assert result["thinned_rand_score"] != everything["thinned_rand_score"]


def test_objects_are_not_connected_through_ignored_pixels() -> None:
    # Two objects with an ignored strip between them, through which the prediction may go or not.
    target, counted = np.ones((4, 9), bool), np.ones((4, 9), bool)
    counted[:, 4] = False
    apart = counted.copy()
    for prediction in (apart, target):
        for truth in (apart, target):
            result = membrane_scores(prediction, truth, counted)
            assert result["thinned_rand_score"] == result["thinned_info_score"] == 1
            assert (
                result["foreground_rand_error"]
                == result["rand_error"]
                == result["warping_error"]
                == 0
            )


def test_touching_objects_of_a_label_image_are_two() -> None:
    labels = np.ones((4, 8), int)
    labels[:, 4:] = 9
    result = membrane_scores(labels > 0, labels > 0, true_objects=labels)
    # One of 32 pixels is found instead of two of 16.
    assert result["thinned_rand_score"] == pytest.approx(2 * 512 / (1024 + 512))
    assert result["pixel_error"] == result["warping_error"] == 0  # of the masks, which are the same
    assert average_precision(connected_components(labels > 0), labels)[0] == 0
