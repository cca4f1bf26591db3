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
        "average precision",
        "average precision at IoU 0.50",
    ]
    assert object_rows(summary_of()) == []


def test_the_text_fits_a_screen() -> None:
    names = ("ground", "cell", "wall", *(f"never {i}" for i in range(9)))
    lines = describe(summary_of(names), 80).splitlines()
    assert len(lines) <= 25
    assert lines[0].split() == ["class", "IoU", "Dice", "precision", "recall"]


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_line_is_wider_than_the_terminal_and_no_score_is_lost(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    summary = summary_of(("ground", "cell", "wall", "a name " * 9), objects=2, boundary_tolerance=2)
    text = describe(summary)
    assert max(map(len, text.splitlines())) <= width
    for rows in (score_rows(summary), object_rows(summary)):
        shown = text.split()
        for word in {cell for row in rows for cell in row[1:]}:
            assert set(word.split()) <= set(shown)
    blocks = [line for line in text.splitlines() if line.startswith("class ")]
    assert len(blocks) == {80: 1, 60: 2, 40: 3}[width]


def test_the_text_explains_what_is_missing() -> None:
    text = describe(summary_of(), 80)
    assert "\nboundary F1 and HD95 need scipy: pip install" in text
    assert "\nno score for 1 of 4 classes: they have no pixels in target or prediction" in text
    ignored = torch.full((2, 3), 255)
    measures = Measures(class_names=NAMES, boundary_tolerance=2, objects=1, labelled=True)
    text = describe(summarize([measure_image(ignored * 0, ignored, measures)], measures), 100)
    assert "\nno score for 1 image: all pixels are ignored" in text
    assert (
        "\nObjects: connected components of cell against label images, mean over the images:\n"
        in text
    )
