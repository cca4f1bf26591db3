import numpy as np
import pytest
import torch

from unet.evaluation.measure import Measures, measure_image
from unet.evaluation.summary import Summary, summarize
from unet.evaluation.tables import describe, object_rows, score_rows

NAMES = ("ground", "cell", "wall", "never")


def summary_of(names: tuple[str, ...] = NAMES, **measures: float) -> Summary:
    """The scores of one image, in which a class is never predicted."""
    target = np.array([[0, 0, 0, 1], [0, 0, 2, 2]], np.uint8)
    prediction = np.where(target == 1, 2, target)
    asked = Measures(class_names=names, **measures)
    image = measure_image(torch.from_numpy(prediction), torch.from_numpy(target), asked)
    return summarize([image], asked)


def test_rows_show_scores_and_their_absence() -> None:
    summary = summary_of(boundary_tolerance=2)
    head, *rows = score_rows(summary)
    assert head == ("class", "IoU", "Dice", "precision", "recall", "boundary F1", "HD95")
    assert {len(row) for row in rows} == {7}
    assert [row[0] for row in rows] == [
        *NAMES,
        "mean",
        "mean without ground",
        "micro",
        "micro without ground",
        "frequency-weighted",
        "mean over images",
        "  standard deviation",
    ]
    assert rows[3][1:] == ("-",) * 6
    assert summary.absent == ["never"]
    accuracy = f"{summary['pixel_accuracy']:.4f}"
    assert rows[6][1:] == (f"{summary['micro_iou']:.4f}", *[accuracy] * 3, "", "")
    assert rows[8][3:] == ("",) * 4
    assert rows[9][6] == f"{summary.over_images('mean_hausdorff95')[0]:.2f}"


def test_a_class_that_is_never_predicted_scores_0_overall_and_in_each_image() -> None:
    summary = summary_of(boundary_tolerance=2)
    ground, cell, wall, never = score_rows(summary)[1:5]
    assert cell[1:] == (*["0.0000"] * 5, "-")
    assert "0.0000" not in ground + wall
    assert set(never[1:]) == {"-"}
    assert summary.columns["precision"][0, 1] == summary.columns["recall"][0, 1] == 0
    assert float(summary.columns["mean_precision"][0]) == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_measures_of_objects_have_rows() -> None:
    rows = object_rows(summary_of(objects=2))
    assert [row[0] for row in rows[:2]] == ["measure of objects", "pixel error"]
    assert [row[0] for row in rows[-2:]] == [
        "object average precision",
        "object average precision at IoU 0.50",
    ]
    assert object_rows(summary_of()) == []


def test_the_text_fits_a_screen() -> None:
    names = ("ground", "cell", "wall", *(f"never {i}" for i in range(9)))
    lines = describe(summary_of(names)).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["class", "IoU", "Dice", "precision", "recall"]
    assert max(map(len, describe(summary_of(objects=2)).splitlines())) <= 80


def test_the_text_explains_what_is_missing() -> None:
    text = describe(summary_of())
    assert "\nboundary F1 and HD95 need unet[metrics]" in text
    assert "\n1 class(es) in neither target nor prediction have no score" in text
    ignored = torch.full((2, 3), 255)
    measures = Measures(class_names=NAMES, boundary_tolerance=2, objects=1, labelled=True)
    text = describe(summarize([measure_image(ignored * 0, ignored, measures)], measures))
    assert "\n1 image(s) have no score, as all of their pixels are ignored" in text
    assert "\nObjects: connected components of cell against label images:\n" in text
