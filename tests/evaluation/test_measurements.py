import math
from functools import partial

import numpy as np
import pytest
import torch

from unet.data.label_images import connected_components
from unet.evaluation.measurements import (
    ImageMeasurements,
    Measures,
    Summary,
    best_thresholds,
    measure,
    object_rows,
    rules,
    score_head,
    score_rows,
    summarize,
    threshold_rows,
)
from unet.inference.tta import choose
from unet.metrics.boundary import boundary_f1, boundary_measures
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import membrane_scores
from unet.models.unet import argmax_classes

NAMES = ("ground", "cell", "wall", "never")


def random_images(count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and targets in patches; the last target is all ignored."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        target = rng.integers(0, 3, (4, 6)).repeat(6, 0).repeat(5, 1).astype(np.uint8)
        prediction = np.roll(target, i, axis=1)
        target[:2] = 255
        images.append((prediction, target))
    images[-1][1][:] = 255
    return images


def summary_of(images: list[tuple[np.ndarray, np.ndarray]], measures: Measures) -> Summary:
    return summarize(
        [
            measure(torch.from_numpy(prediction), torch.from_numpy(target), len(NAMES), measures)
            for prediction, target in images
        ],
        NAMES,
        measures,
    )


def slow_iou(pixels: list[tuple[int, int]], class_id: int) -> float:
    found = {i for i, (a, b) in enumerate(pixels) if b != 255 and a == class_id}
    true = {i for i, (a, b) in enumerate(pixels) if b == class_id}
    return len(found & true) / len(found | true) if found | true else float("nan")


def test_all_numbers_equal_a_slow_recomputation() -> None:
    images = random_images()
    summary = summary_of(images, Measures(boundary_distance=1.5))
    pixels = [
        list(zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True))
        for prediction, target in images
    ]
    everything = [pair for image in pixels for pair in image]
    assert int(summary.matrix.sum()) == sum(b != 255 for _, b in everything)
    for i in range(4):
        assert summary.overall["iou"][i] == pytest.approx(slow_iou(everything, i), nan_ok=True)
        for n, image in enumerate(pixels):
            value = float(summary.columns["iou"][n, i])
            assert value == pytest.approx(slow_iou(image, i), nan_ok=True)
    by_image = [[slow_iou(image, i) for i in range(3)] for image in pixels[:-1]]
    means = np.nanmean(by_image, axis=1)
    mean, std, without = summary.over_images("mean_iou")
    assert (mean, std, without) == (
        pytest.approx(means.mean()),
        pytest.approx(means.std(ddof=1)),
        1,
    )
    counts, distances = zip(*(boundary_measures(*image, 4, 1.5) for image in images), strict=True)
    assert summary.overall["boundary_f1"] == pytest.approx(boundary_f1(sum(counts)), nan_ok=True)
    assert summary.columns["boundary_f1"][1].tolist() == pytest.approx(
        boundary_f1(counts[1]), nan_ok=True
    )
    assert summary.over_images("hausdorff95")[0][:3] == pytest.approx(
        np.nanmean([row[:3] for row in distances[:-1]], 0)
    )
    assert summary.overall["mean_boundary_f1_foreground"] == pytest.approx(
        np.mean(summary.overall["boundary_f1"][1:3])
    )


def test_an_image_in_which_all_is_ignored_has_no_score_and_changes_none() -> None:
    images = random_images()
    measures = Measures(boundary_distance=2, objects=1)
    with_it, without_it = summary_of(images, measures), summary_of(images[:-1], measures)
    assert with_it.ranking == without_it.ranking
    assert 4 not in with_it.ranking
    for name, column in with_it.columns.items():
        assert column[-1].isnan().all(), name
        means = with_it.over_images(name)[0], without_it.over_images(name)[0]
        assert means[0] == pytest.approx(means[1], nan_ok=True)
    assert summary_of(images[-1:], measures).ranking == []


@pytest.mark.parametrize("seed", range(5))
def test_what_is_predicted_on_ignored_pixels_changes_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, (4, 6)).repeat(6, 0).repeat(5, 1).astype(np.uint8)
    prediction = np.where(rng.random(target.shape) < 0.1, rng.integers(0, 3), target)
    ignored = (rng.random((4, 6)) < 0.2).repeat(6, 0).repeat(5, 1)
    ignored |= rng.random(target.shape) < 0.1
    target[ignored] = 255
    measures = Measures(boundary_distance=1.5, objects=1)
    first = summary_of([(prediction.astype(np.uint8), target)], measures)
    assert not first.columns["object_average_precision"].isnan().any()
    for noise in (*range(4), rng.integers(0, 4, target.shape)):
        other = np.where(ignored, noise, prediction).astype(np.uint8)
        second = summary_of([(other, target)], measures)
        assert torch.equal(first.matrix, second.matrix)
        np.testing.assert_equal(second.overall, first.overall)
        np.testing.assert_equal(
            *({name: x.numpy() for name, x in one.columns.items()} for one in (second, first))
        )


def test_two_objects_with_an_ignored_strip_between_them_are_two() -> None:
    target = np.ones((8, 21), np.uint8)
    target[:, 10] = 255
    for strip in (0, 1):
        prediction = np.ones((8, 21), np.uint8)
        prediction[:, 10] = strip
        columns = summary_of([(prediction, target)], Measures(objects=1)).columns
        assert columns["object_average_precision"].tolist() == [1]
        assert columns["thinned_rand_score"].tolist() == [1]


def test_the_ranking_goes_from_the_worst_to_the_best() -> None:
    summary = summary_of(random_images(), Measures())
    values = summary.columns["mean_iou"][summary.ranking].tolist()
    assert values == sorted(values)
    assert summary.ranking[-1] == 0  # which is predicted without fault


def test_objects_are_the_parts_of_the_class() -> None:
    images = random_images()
    prediction, target = images[2]
    summary = summary_of(images, Measures(objects=2))
    counted = target != 255
    expected = membrane_scores(prediction == 2, target == 2, counted)
    for name, value in vars(expected).items():
        assert float(summary.columns[name][2]) == value, name
    precisions = average_precision(
        connected_components((prediction == 2) & counted), connected_components(target == 2)
    )
    assert float(summary.columns["object_average_precision"][2]) == pytest.approx(
        np.mean(precisions)
    )
    assert float(summary.columns["object_average_precision_at_iou_0.75"][2]) == precisions[5]
    names = [row.name for row in object_rows(summary)]
    assert names[0] == "pixel error"
    assert names[-2:] == ["object average precision", "object average precision at IoU 0.50"]
    assert object_rows(summary_of(images, Measures())) == []


def test_true_objects_may_be_those_of_label_images() -> None:
    target = np.ones((6, 9), np.uint8)
    target[:2], target[2:4, :2] = 0, 255
    labels = np.where(np.arange(9) < 5, 4, 7) * np.ones((6, 1), int)  # also where it is background
    prediction = (target == 1) & (np.arange(9) != 4)
    measures = Measures(objects=1, labelled=True)
    image = measure(torch.tensor(prediction.astype(np.uint8)), torch.tensor(target), 2, measures,
                    labels=labels)  # fmt: skip
    cut = np.where(target == 1, labels, 0)
    expected = vars(membrane_scores(prediction, target == 1, target != 255, cut))
    assert {name: image.objects[name] for name in expected} == expected
    assert image.objects["object_average_precision_at_iou_0.50"] == 1
    said = rules(summarize([image], ("ground", "cell"), measures))["objects"]
    assert "objects are those that label images number" in said
    assert "label images" not in rules(summary_of(random_images(), Measures(objects=1)))["objects"]


def test_an_object_of_a_label_image_that_ignored_pixels_part_is_two() -> None:
    target, labels = np.ones((4, 9), np.uint8), np.full((4, 9), 3)
    target[:, 4] = 255
    for strip in (0, 1):
        prediction = np.ones((4, 9), np.uint8)
        prediction[:, 4] = strip
        image = measure(torch.tensor(prediction), torch.tensor(target), 2,
                        Measures(objects=1, labelled=True), labels=labels)  # fmt: skip
        assert image.objects["object_average_precision"] == 1
        assert image.objects["thinned_rand_score"] == 1


def test_an_ignored_pixel_leaves_objects_alone_that_it_does_not_touch() -> None:
    labels = np.zeros((7, 9), np.uint16)
    labels[:2, :2] = labels[:2, 4:6] = 1  # one object in two places, as its label image says
    labels[4:, :] = 2
    labels[4:, 4] = 0  # under what is ignored, where nobody has numbered it
    found, target = (labels > 0).astype(np.uint8), (labels > 0).astype(np.uint8)
    target[4:, 4] = 255
    measures = Measures(objects=1, labelled=True)
    image = measure(torch.tensor(found), torch.tensor(target), 2, measures, labels=labels)
    # Of the three objects 1 is found in neither of two places, each half of it; 2 is two, found.
    assert image.objects["object_average_precision_at_iou_0.50"] == 2 / (2 + 2 + 1)


def walls(wall: float, cell: float = 0.9, objects: int = 1) -> ImageMeasurements:
    """Two cells of 4 x 4 pixels, of a probability, and between them a wall of another one."""
    probability = torch.full((4, 9), cell)
    probability[:, 4] = wall
    target = torch.ones(4, 9, dtype=torch.uint8)
    target[:, 4] = 0
    scores = torch.stack((1 - probability, probability))
    return measure(
        argmax_classes(scores), target, 2, Measures(objects=objects), partial(choose, scores)
    )


def test_the_best_threshold_of_a_wall_is_that_which_parts_the_cells() -> None:
    summary = summarize([walls(0.6)], ("wall", "cell"), Measures(objects=1))
    assert list(summary.at_thresholds) == pytest.approx(np.arange(0.05, 0.96, 0.05))
    # One cell of two: 2 x 0.5^2 of pairs are right, of 1 found and 0.5 true ones.
    for threshold, means in summary.at_thresholds.items():
        score, error = (2 / 3, 4 / 36) if threshold <= 0.6 else (1, 0)
        if threshold <= 0.9:
            assert means["thinned_rand_score"] == pytest.approx(score), threshold
            assert means["pixel_error"] == pytest.approx(error), threshold
    assert summary.at_thresholds[0.95]["pixel_error"] == pytest.approx(32 / 36)
    best = best_thresholds(summary)
    # Of 0.65 to 0.9, which are as good, that nearest to 0.5.
    assert best["thinned_rand_score"] == pytest.approx((0.65, 1, 2 / 3, 0))
    assert best["pixel_error"] == pytest.approx((0.65, 0, 4 / 36, 0))
    assert best["object_average_precision_at_iou_0.50"] == (0.65, 1, 0, 0)
    faint = summarize([walls(0.02, cell=0.3)], ("wall", "cell"), Measures(objects=1))
    assert best_thresholds(faint)["thinned_rand_score"].threshold == 0.3
    rows = {row.name: row.cells for row in threshold_rows(summary)}
    assert rows["thinned rand score"] == ("0.6667", "1.0000", "0.65", "0.0000")
    assert "'unet predict --threshold P'" in rules(summary)["thresholds of objects"]


def test_objects_at_thresholds_are_means_over_the_images_that_have_them() -> None:
    ignored = torch.full((4, 9), 255)
    nothing = measure(
        ignored * 0, ignored, 2, Measures(objects=1), partial(choose, torch.full((2, 4, 9), 0.5))
    )
    names, measures = ("wall", "cell"), Measures(objects=1)
    summary = summarize([walls(0.6), nothing, walls(0.3)], names, measures)
    assert summary.at_thresholds[0.5]["thinned_rand_score"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary.at_thresholds[0.5]["pixel_error"] == pytest.approx(4 / 36 / 2)
    assert best_thresholds(summary)["thinned_rand_score"][:2] == (0.65, 1)
    without = summarize([nothing], names, measures)
    assert best_thresholds(without) == {}
    assert threshold_rows(without) == []


def test_objects_of_the_first_class_are_what_the_threshold_leaves_to_it() -> None:
    summary = summarize([walls(0.6, objects=0)], ("wall", "cell"), Measures(objects=0))
    precisions = [means["object_average_precision"] for means in summary.at_thresholds.values()]
    # Below there is no wall; above all is.
    assert precisions == [0.0] * 12 + [1.0] * 6 + [0.0]
    assert best_thresholds(summary)["object_average_precision"].threshold == 0.65


def test_objects_are_measured_at_thresholds_only_where_asked_for() -> None:
    summary = summary_of(random_images(), Measures(objects=1))
    assert summary.at_thresholds == {}
    assert threshold_rows(summary) == []
    assert "thresholds of objects" not in rules(summary)


def test_rows_show_what_has_no_score() -> None:
    images = random_images()
    summary = summary_of(images, Measures(boundary_distance=2))
    head, rows = score_head(summary), score_rows(summary)
    assert head.cells == ("IoU", "Dice", "precision", "recall", "boundary F1", "HD95")
    assert {len(row.cells) for row in rows} == {6}
    assert [row.name for row in rows] == [
        *NAMES,
        "mean",
        "mean without ground",
        "micro",
        "micro without ground",
        "frequency-weighted",
        "mean over images",
        "  their spread +-",
    ]
    assert rows[3].cells == ("-",) * 6
    assert summary.absent == ["never"]
    accuracy = f"{summary.overall['pixel_accuracy']:.4f}"
    assert rows[6].cells == (f"{summary.overall['micro_iou']:.4f}", *[accuracy] * 3, "", "")
    assert rows[8].cells[2:] == ("",) * 4
    assert rows[9].cells[5] == f"{summary.over_images('mean_hausdorff95')[0]:.2f}"


def test_a_class_that_is_never_predicted_scores_0_in_the_table_of_all_and_of_each_image() -> None:
    target = np.array([[0, 0, 0, 1], [0, 0, 2, 2]], np.uint8)
    prediction = np.where(target == 1, 2, target)
    summary = summary_of([(prediction, target)], Measures(boundary_distance=2))
    ground, cell, wall, never = score_rows(summary)[:4]
    assert cell.cells == (*["0.0000"] * 5, "-")
    assert "0.0000" not in ground.cells + wall.cells
    assert set(never.cells) == {"-"}
    assert summary.columns["precision"][0, 1] == summary.columns["recall"][0, 1] == 0
    assert float(summary.columns["mean_precision"][0]) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert "the precision of a class that is never predicted" in rules(summary)["what counts"]


def test_the_rules_say_what_was_measured() -> None:
    images = random_images()
    said = rules(summary_of(images, Measures(boundary_distance=3, objects=2)))
    assert "within 3 pixels" in said["boundary F1"]
    assert "the class wall" in said["objects"]
    assert "mean without ground" in said
    assert "thresholds" not in said
    said = rules(summary_of(images, Measures()))
    assert said["boundary F1, HD95"] == "Not computed: needs unet[metrics]."
    assert "objects" not in said


def test_a_single_image_has_no_spread() -> None:
    summary = summary_of(random_images()[:1], Measures())
    mean, std, without = summary.over_images("mean_iou")
    assert (mean, without) == (1, 0)
    assert math.isnan(std)
