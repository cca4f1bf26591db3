import copy
import json
import math

import numpy as np
import pytest
import torch

from unet.evaluation.measure import ImageMeasurements, Measures, measure_image
from unet.evaluation.summary import Summary, summarize
from unet.evaluation.tables import threshold_rows
from unet.metrics.boundary import boundary_f1, boundary_measures
from unet.models.unet import argmax_classes

NAMES = ("ground", "cell", "wall", "never")
CELLS = Measures(class_names=("wall", "cell"), objects=1, thresholds=True)


def random_images() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and targets in patches; the last target ignores all pixels."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(5):
        target = rng.integers(0, 3, (4, 6)).repeat(6, 0).repeat(5, 1).astype(np.uint8)
        prediction = np.roll(target, i, axis=1)
        target[:2] = 255
        images.append((prediction, target))
    images[-1][1][:] = 255
    return images


def summary_of(
    images: list[tuple[np.ndarray, np.ndarray]],
    boundary_tolerance: float | None = None,
    objects: int | None = None,
) -> Summary:
    measures = Measures(class_names=NAMES, boundary_tolerance=boundary_tolerance, objects=objects)
    pairs = [map(torch.from_numpy, pair) for pair in images]
    return summarize([measure_image(*pair, measures) for pair in pairs], measures)


def slow_iou(pixels: list[tuple[int, int]], class_id: int) -> float:
    found = {i for i, (a, b) in enumerate(pixels) if b != 255 and a == class_id}
    true = {i for i, (a, b) in enumerate(pixels) if b == class_id}
    return len(found & true) / len(found | true) if found | true else float("nan")


def test_all_numbers_equal_a_slow_computation() -> None:
    images = random_images()
    summary = summary_of(images, boundary_tolerance=1.5)
    pixels = [
        list(zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True))
        for prediction, target in images
    ]
    everything = [pair for image in pixels for pair in image]
    assert int(summary.matrix.sum()) == sum(b != 255 for _, b in everything)
    for i in range(4):
        assert summary["iou"][i] == pytest.approx(slow_iou(everything, i), nan_ok=True)
        for n, image in enumerate(pixels):
            value = float(summary.columns["iou"][n, i])
            assert value == pytest.approx(slow_iou(image, i), nan_ok=True)
    by_image = [[slow_iou(image, i) for i in range(3)] for image in pixels[:-1]]
    means = np.nanmean(by_image, axis=1)
    expected = (pytest.approx(means.mean()), pytest.approx(means.std(ddof=1)), 1)
    assert summary.over_images("mean_iou") == expected
    counts, distances = zip(*(boundary_measures(*image, 4, 1.5) for image in images), strict=True)
    assert summary["boundary_f1"] == pytest.approx(boundary_f1(sum(counts)), nan_ok=True)
    assert summary.columns["boundary_f1"][1].tolist() == pytest.approx(
        boundary_f1(counts[1]), nan_ok=True
    )
    assert summary.over_images("hausdorff95")[0][:3] == pytest.approx(
        np.nanmean([row[:3] for row in distances[:-1]], 0)
    )
    assert summary["mean_boundary_f1_foreground"] == pytest.approx(
        np.mean(summary["boundary_f1"][1:3])
    )


def test_a_summary_is_a_mapping_of_scores() -> None:
    summary = summary_of(random_images())
    assert "mean_iou" in summary
    assert "nonsense" not in summary
    assert dict(summary) == summary.overall
    assert summary.get("nonsense") is None


def test_an_image_that_is_ignored_has_no_score_and_changes_none() -> None:
    images = random_images()
    with_it, without_it = (
        summary_of(some, boundary_tolerance=2, objects=1) for some in (images, images[:-1])
    )
    assert with_it.ranking == without_it.ranking
    assert 4 not in with_it.ranking
    for name, column in with_it.columns.items():
        assert column[-1].isnan().all(), name
        means = with_it.over_images(name)[0], without_it.over_images(name)[0]
        assert means[0] == pytest.approx(means[1], nan_ok=True)
    assert summary_of(images[-1:]).ranking == []


def test_the_ranking_is_from_the_worst_to_the_best() -> None:
    summary = summary_of(random_images())
    values = summary.columns["mean_iou"][summary.ranking].tolist()
    assert values == sorted(values)
    assert summary.ranking[-1] == 0  # without errors


def test_a_single_image_has_no_standard_deviation() -> None:
    mean, std, without = summary_of(random_images()[:1]).over_images("mean_iou")
    assert (mean, without) == (1, 0)
    assert math.isnan(std)


def walls(wall: float, cell: float = 0.9, measures: Measures = CELLS) -> ImageMeasurements:
    """Measure two cells of 4 x 4 pixels and a wall between them, given their probabilities."""
    probability = torch.full((4, 9), cell)
    probability[:, 4] = wall
    target = torch.ones(4, 9, dtype=torch.uint8)
    target[:, 4] = 0
    scores = torch.stack((1 - probability, probability))
    return measure_image(argmax_classes(scores), target, measures, scores)


def test_the_best_threshold_of_a_wall_separates_the_cells() -> None:
    summary = summarize([walls(0.6)], CELLS)
    assert list(summary.at_thresholds) == pytest.approx(np.arange(0.05, 0.96, 0.05))
    # Below, one cell is found instead of two: half of its pairs of pixels are right.
    for threshold, means in summary.at_thresholds.items():
        score, error = (2 / 3, 4 / 36) if threshold <= 0.6 else (1, 0)
        if threshold <= 0.9:
            assert means["thinned_rand_score"] == pytest.approx(score), threshold
            assert means["pixel_error"] == pytest.approx(error), threshold
    assert summary.at_thresholds[0.95]["pixel_error"] == pytest.approx(32 / 36)
    best = summary.best_thresholds
    # 0.65 to 0.9 are equal; 0.65 is the nearest to 0.5.
    assert best["thinned_rand_score"] == pytest.approx((0.65, 1, 2 / 3, 0))
    assert best["pixel_error"] == pytest.approx((0.65, 0, 4 / 36, 0))
    assert best["object_average_precision_at_iou_0.50"] == (0.65, 1, 0, 0)
    faint = summarize([walls(0.02, cell=0.3)], CELLS)
    assert faint.best_thresholds["thinned_rand_score"].threshold == 0.3
    rows = {name: cells for name, *cells in threshold_rows(summary)}
    assert rows["thinned Rand score"] == ["0.6667", "1.0000", "0.65", "0.0000"]


def test_objects_at_thresholds_are_averaged_over_the_images_that_have_a_score() -> None:
    ignored = torch.full((4, 9), 255)
    nothing = measure_image(ignored * 0, ignored, CELLS, torch.full((2, 4, 9), 0.5))
    summary = summarize([walls(0.6), nothing, walls(0.3)], CELLS)
    assert summary.at_thresholds[0.5]["thinned_rand_score"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary.at_thresholds[0.5]["pixel_error"] == pytest.approx(4 / 36 / 2)
    assert summary.best_thresholds["thinned_rand_score"][:2] == (0.65, 1)
    without = summarize([nothing], CELLS)
    assert without.best_thresholds == {}
    assert threshold_rows(without) == []


def test_objects_of_the_first_class_are_the_pixels_below_the_threshold() -> None:
    measures = Measures(class_names=("wall", "cell"), objects=0, thresholds=True)
    summary = summarize([walls(0.6, measures=measures)], measures)
    precisions = [means["object_average_precision"] for means in summary.at_thresholds.values()]
    # At low thresholds nothing is wall, at the highest everything.
    assert precisions == [0.0] * 12 + [1.0] * 6 + [0.0]
    assert summary.best_thresholds["object_average_precision"].threshold == 0.65


def test_objects_are_measured_at_thresholds_only_if_asked_for() -> None:
    summary = summary_of(random_images(), objects=1)
    assert summary.at_thresholds == {}
    assert threshold_rows(summary) == []
    assert summary.curve is None


def test_scores_are_attributes_and_items_and_a_dict() -> None:
    summary = summary_of(random_images(), boundary_tolerance=2, objects=1)
    assert summary.mean_iou == summary["mean_iou"]
    assert summary.iou == summary["iou"]
    assert "mean_iou" in dir(summary)
    scores = summary.to_dict()
    assert scores["mean_iou"] == summary.mean_iou
    assert scores["iou"][3] is None  # in no image
    assert math.isnan(summary.iou[3])
    json.dumps(scores, allow_nan=False)
    assert copy.deepcopy(summary).mean_iou == summary.mean_iou


def test_an_unknown_score_suggests_a_known_one() -> None:
    summary = summary_of(random_images(), boundary_tolerance=2)
    with pytest.raises(AttributeError, match=r"no score mean_uio; did you mean mean_iou\?"):
        _ = summary.mean_uio
    with pytest.raises(KeyError, match=r"no score meanIoU; did you mean mean_iou\?"):
        _ = summary["meanIoU"]
    with pytest.raises(KeyError, match=r"no score f1; expected one of .*mean_dice"):
        _ = summary["f1"]
    with pytest.raises(KeyError, match=r"did you mean hausdorff95\?"):
        summary.over_images("hausdorf")
    with pytest.raises(AttributeError, match=r"take over_images\('hausdorff95'\)"):
        _ = summary.hausdorff95
    assert "mean_uio" not in summary
    assert summary.get("mean_uio") is None
    assert not hasattr(summary, "_repr_png_")


def test_a_result_has_a_short_repr_a_text_and_a_table_for_notebooks() -> None:
    names = ("ground", "a <b>")
    measures = Measures(class_names=names, objects=1)
    images = [measure_image(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), measures)]
    summary = summarize(images, measures, ["0"], "best.pt & others")
    assert repr(summary) == "Summary(images=1, classes=2, mean_iou=1.0000, pixel_accuracy=1.0000)"
    assert str(summary).startswith("best.pt & others\n\nclass ")
    html = summary._repr_html_()
    assert html.startswith("<p>best.pt &amp; others; pixel accuracy 1.0000</p><table>")
    assert "<tr><td>a &lt;b&gt;</td><td>-</td>" in html
    assert html.count("<table>") == html.count("</table>") == 2
    assert "pixel error" in html
