import numpy as np
import pytest
import torch

from unet.data.label_images import connected_components
from unet.evaluation.measure import ImageMeasurements, Measures, measure_image, rules
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import membrane_scores

NAMES = ("ground", "cell")


def measure(
    prediction: np.ndarray,
    target: np.ndarray,
    labels: np.ndarray | None = None,
    names: tuple[str, ...] = NAMES,
    objects: int = 1,
) -> ImageMeasurements:
    measures = Measures(
        class_names=names,
        boundary_tolerance=1.5,
        objects=objects,
        labelled=labels is not None,
    )
    both = (torch.from_numpy(ids.astype(np.uint8)) for ids in (prediction, target))
    return measure_image(*both, measures, label_image=labels)


@pytest.mark.parametrize("seed", range(5))
def test_predictions_on_ignored_pixels_change_no_measure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ("ground", "cell", "wall", "never")
    target = rng.integers(0, 3, (4, 6)).repeat(6, 0).repeat(5, 1).astype(np.uint8)
    prediction = np.where(rng.random(target.shape) < 0.1, rng.integers(0, 3), target)
    ignored = (rng.random((4, 6)) < 0.2).repeat(6, 0).repeat(5, 1)
    ignored |= rng.random(target.shape) < 0.1
    target[ignored] = 255
    first = measure(prediction, target, names=names)
    assert not np.isnan(first.values["object_average_precision"])
    for noise in (*range(4), rng.integers(0, 4, target.shape)):
        second = measure(np.where(ignored, noise, prediction), target, names=names)
        assert torch.equal(first.matrix, second.matrix)
        np.testing.assert_equal(second.values, first.values)
        np.testing.assert_equal(second.boundary, first.boundary)


def test_two_objects_with_an_ignored_strip_between_them_are_two() -> None:
    target = np.ones((8, 21), np.uint8)
    target[:, 10] = 255
    for strip in (0, 1):
        prediction = np.ones((8, 21), np.uint8)
        prediction[:, 10] = strip
        values = measure(prediction, target).values
        assert values["object_average_precision"] == values["thinned_rand_score"] == 1


def test_objects_are_the_connected_components_of_the_class() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (4, 6)).repeat(6, 0).repeat(5, 1)
    prediction = np.roll(target, 2, axis=1)
    target[:2] = 255
    values = measure(prediction, target, names=("ground", "cell", "wall"), objects=2).values
    counted = target != 255
    expected = membrane_scores(prediction == 2, target == 2, counted)
    assert {name: values[name] for name in expected} == expected
    precisions = average_precision(
        connected_components((prediction == 2) & counted), connected_components(target == 2)
    )
    assert values["object_average_precision"] == pytest.approx(np.mean(precisions))
    assert values["object_average_precision_at_iou_0.75"] == precisions[5]


def test_label_images_may_number_the_objects_of_the_target() -> None:
    target = np.ones((6, 9), np.uint8)
    target[:2], target[2:4, :2] = 0, 255
    labels = np.where(np.arange(9) < 5, 4, 7) * np.ones((6, 1), int)  # on the background, too
    prediction = (target == 1) & (np.arange(9) != 4)
    values = measure(prediction, target, labels).values
    cropped = np.where(target == 1, labels, 0)
    expected = membrane_scores(prediction, target == 1, target != 255, cropped)
    assert {name: values[name] for name in expected} == expected
    assert values["object_average_precision_at_iou_0.50"] == 1


def test_ignored_pixels_separate_an_object_of_a_label_image() -> None:
    target, labels = np.ones((4, 9), np.uint8), np.full((4, 9), 3)
    target[:, 4] = 255
    for strip in (0, 1):
        prediction = np.ones((4, 9), np.uint8)
        prediction[:, 4] = strip
        values = measure(prediction, target, labels).values
        assert values["object_average_precision"] == values["thinned_rand_score"] == 1


def test_an_ignored_pixel_does_not_change_objects_that_it_does_not_touch() -> None:
    labels = np.zeros((7, 9), np.uint16)
    labels[:2, :2] = labels[:2, 4:6] = 1  # one object in two places
    labels[4:, :] = 2
    labels[4:, 4] = 0  # nobody has numbered ignored pixels
    target = (labels > 0).astype(np.uint8)
    target[4:, 4] = 255
    values = measure(labels > 0, target, labels).values
    # Three objects: 1 is not found, as each place is half of it; the halves of 2 are both found.
    assert values["object_average_precision_at_iou_0.50"] == 2 / (2 + 2 + 1)


def test_rules_explain_the_measures() -> None:
    names = ("ground", "cell", "{wall}")
    texts = rules(Measures(class_names=names, boundary_tolerance=3, objects=2))
    assert "within 3 pixels" in texts["boundary F1"]
    assert "the class {wall}" in texts["objects"]
    assert "mean without ground" in texts
    assert "the precision of a class that is never predicted" in texts["pixels that count"]
    assert not {"thresholds", "thresholds of objects", "objects of label images"} & set(texts)
    assert "objects of label images" in rules(Measures(class_names=names, objects=1, labelled=True))
    texts = rules(Measures(class_names=NAMES, thresholds=True))
    assert texts["boundary F1, HD95"] == "Not computed: needs scipy, of the extra metrics of unet."
    assert "A pixel is cell if" in texts["thresholds"]
    assert not {"objects", "thresholds of objects"} & set(texts)
    texts = rules(Measures(class_names=NAMES, thresholds=True, objects=1))
    assert "0.05 to 0.95" in texts["thresholds of objects"]
