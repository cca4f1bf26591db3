import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unet.data.classes import ClassMap
from unet.data.pairing import Pair
from unet.evaluation.measure import Measures, measure_image
from unet.evaluation.report import (
    choose_examples,
    draw_example,
    make_example,
    make_histogram,
    render_report,
)
from unet.evaluation.summary import Summary, summarize
from unet.metrics.precision_recall import NUM_BINS, Curve, precision_recall, probability_counts
from unet.visualize import error_colours

INVENTED = error_colours([(90, 90, 90), (230, 159, 0)])["invented"]
PICTURES = ["image", "target", "prediction", "errors"]

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Collects tags and text; fails if the tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_summary(names: tuple[str, ...], count: int = 13, curve: Curve | None = None) -> Summary:
    """Each image has more errors than the one before."""
    rng = np.random.default_rng(0)
    measures = Measures(class_names=names, boundary_tolerance=2, thresholds=curve is not None)
    images = []
    for i in range(count):
        target = rng.integers(0, len(names), (12, 18))
        wrong = rng.random((12, 18)) < 0.05 * i
        prediction = np.where(wrong, (target + 1) % len(names), target)
        both = torch.from_numpy(prediction), torch.from_numpy(target)
        images.append(measure_image(*both, replace(measures, thresholds=False)))
    title, stems = f"best.pt of {names[1]}", [str(i) for i in range(count)]
    return replace(summarize(images, measures, stems, title), curve=curve)


def render(summary: Summary, **settings: object) -> str:
    """Render a report with one example image."""
    names = summary.class_names
    colours = ClassMap({name: i for i, name in enumerate(names)}).colours
    ids = np.arange(12 * 18).reshape(12, 18) % len(names)
    arrays = np.zeros((12, 18, 3), np.uint8), ids, (ids + (np.arange(18) < 8)) % len(names)
    facts = {"checkpoints": ["best.pt"], "tta": [], "source": "the validation split"}
    pair = Pair(names[1], ("data/images/a #1.png",), ("data/masks/a #1.png",))
    examples = {"worst": [make_example(pair, Path("runs/mine/scores"), 0.5, arrays, colours)]}
    return render_report(summary, facts, settings, colours, examples)


def make_report(names: tuple[str, ...], count: int = 13, curve: Curve | None = None) -> str:
    settings = {"data.root": "a & b", "data.classes": str(names)}
    return render(make_summary(names, count, curve), **settings)


def make_curve() -> Curve:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (40, 40))
    probability = (rng.random((40, 40)) + target) / 2
    return precision_recall(probability_counts(probability, target))


def decoded(address: str) -> np.ndarray:
    kind, _, text = address.partition(";base64,")
    assert kind in {"data:image/png", "data:image/jpeg"}
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("count", [2, 12])
def test_the_report_is_complete_and_needs_no_other_file(count: int) -> None:
    names = tuple(f"class {i}" for i in range(count))
    html = make_report(names, curve=make_curve())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert {attributes["src"].partition(",")[0] for attributes in page.all("img")} <= {
        "data:image/png;base64",
        "data:image/jpeg;base64",
    }
    assert not re.search(r"https?:|url\(|@import|<script|<link|javascript:|\bon\w+=", html)
    assert [attributes["href"] for attributes in page.all("a")] == [
        "per_image.csv",
        "confusion.png",
        "thresholds.csv",
        "metrics.json",
        "../../../data/images/a%20%231.png",
        "../../../data/masks/a%20%231.png",
    ]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert all(attributes.get("alt") for attributes in page.all("img"))
    for name in names:
        assert name in page.text
    places = [page.text.index(heading) for heading in (
        "Scores", "Images", "Worst", "Distribution", "Thresholds", "Confusion matrix",
        "How each score is computed and averaged", "settings of its run")]  # fmt: skip
    assert places == sorted(places)


def test_each_row_of_pictures_says_what_is_wrong_in_the_colours_of_the_legend() -> None:
    html = make_report(("ground", "cell"))
    [caption] = re.findall(r"<figcaption>.*</figcaption>", html, re.DOTALL)
    assert " ".join(Page(caption).text.split()) == (
        "cell mean IoU 0.5000 missed 22.2 % invented 22.2 % files: image a #1.png, mask a #1.png"
    )
    for name in ("missed", "invented"):
        swatch = "background: rgb({} {} {})".format(
            *error_colours([(90, 90, 90), (230, 159, 0)])[name]
        )
        assert len(re.findall(rf"{re.escape(swatch)}\"></span>{name}", html)) == 2
    assert "wrong class" not in html
    assert "wrong class" in make_report(("ground", "cell", "wall"))


def test_a_class_has_the_same_colour_wherever_it_is_named() -> None:
    names = ("ground", "cell", "wall")
    html = make_report(names)
    for name, colour in zip(
        names, ClassMap({name: i for i, name in enumerate(names)}).colours, strict=True
    ):
        swatches = re.findall(rf"background: rgb\(([\d ]+)\)\"></span>{name}<", html)
        assert swatches == ["{} {} {}".format(*colour)] * 3  # scores, legend, confusion matrix


def test_a_picture_is_enlarged_by_its_own_checkbox() -> None:
    page = Page(make_report(("ground", "cell")))
    labels = [attributes["aria-label"] for attributes in page.all("input")]
    assert labels == [f"enlarge: {name} of cell" for name in PICTURES]


def test_names_are_escaped() -> None:
    names = ("ground", '<script>alert("&")</script>\'')
    html = make_report(names, curve=make_curve())
    assert "<script" not in html
    page = Page(html)
    assert names[1] in page.text
    assert any(names[1] in (attributes.get("alt") or "") for attributes in page.all("img"))
    assert "a & b" in page.text


def test_the_confusion_matrix_is_in_percent_of_each_target() -> None:
    measures = Measures(class_names=("ground", "cell", "never"))
    image = measure_image(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]]), measures)
    html = render(summarize([image], measures))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html.partition('class="matrix"')[2])[:12]
    assert cells == ["66.7", "33.3", "0.0", "3", "0.0", "100.0", "0.0", "1", "-", "-", "-", "0"]
    assert (
        "1 of 3 classes have no score, as they have no pixels in target or prediction: never."
        in html
    )
    assert "needs scipy, of the extra metrics" in html


def test_the_bars_count_every_image_that_has_a_score() -> None:
    summary = make_summary(("ground", "cell"))
    pattern = r"<title>([\d.]+) to ([\d.]+): (\d+) images?<"
    bars = re.findall(pattern, make_report(summary.class_names))
    assert sum(int(count) for *_, count in bars) == 13
    scores = summary.columns["mean_iou"].numpy()
    for low, high, count in bars:
        inside = (scores >= float(low)) & ((scores < float(high)) | (float(high) == scores.max()))
        assert inside.sum() == int(count)


@pytest.mark.parametrize(
    ("scores", "first", "last", "count"),
    [
        ([0.0, 0.4, 1.0], "0.00", "1.00", 5),
        ([0.912, 0.93, 0.981], "0.90", "1.00", 5),
        ([0.9, 0.9011], "0.900", "0.905", 5),
        ([1.0], "0.995", "1.000", 5),
        ([0.0], "0.000", "0.005", 5),
        ([0.5, 1.0], "0.50", "1.00", 5),
        ([0.912, *[0.93] * 30, 0.981], "0.910", "0.985", 15),
    ],
)
def test_the_range_of_the_histogram_is_that_of_the_scores(
    scores: list[float], first: str, last: str, count: int
) -> None:
    histogram = make_histogram(scores)
    assert (histogram.edges[0], histogram.edges[-1]) == (first, last)
    assert (len(histogram.counts), sum(histogram.counts)) == (count, len(scores))
    assert len(histogram.edges) == count + 1
    assert 2 <= len(histogram.ticks) <= 6
    assert all(text == histogram.edges[round(place * count)] for place, text in histogram.ticks)


def test_the_best_threshold_is_named() -> None:
    curve = make_curve()
    text = Page(make_report(("ground", "cell"), curve=curve)).text
    assert curve.best is not None
    assert f"average precision {curve.average_precision:.4f}" in text
    assert f"is at the threshold {curve.thresholds[curve.best]:.3f}" in text
    none = precision_recall(np.zeros((2, NUM_BINS), np.int64))
    text = Page(make_report(("ground", "cell"), curve=none)).text
    assert "No target has a pixel of cell: there is no curve" in text


def test_a_report_says_that_no_image_has_a_score() -> None:
    ignored = torch.full((3, 4), 255)
    measures = Measures(class_names=("a", "b"), boundary_tolerance=2, objects=1, thresholds=True)
    image = measure_image(ignored * 0, ignored, measures, torch.full((2, 3, 4), 0.5))
    text = Page(render(summarize([image], measures, ["0"]))).text
    assert text.count("No image has a score.") == 2  # and no thresholds of objects
    assert "1 image without a score: all pixels are ignored" in text
    assert "nan" not in text


def test_worst_median_and_best_images_are_chosen_once() -> None:
    assert choose_examples(range(100)) == {
        "worst": [0, 1, 2, 3],
        "median": [48, 49, 50, 51],
        "best": [99, 98, 97, 96],
    }
    assert choose_examples([7, 5, 6]) == {"worst": [7], "median": [5], "best": [6]}
    assert choose_examples([7, 5]) == {"worst": [7], "best": [5]}
    assert choose_examples([7]) == {"worst": [7]}
    assert choose_examples([]) == {}
    for count in range(1, 30):
        chosen = [i for members in choose_examples(range(count)).values() for i in members]
        assert len(chosen) == len(set(chosen))


def test_an_example_shows_image_target_prediction_and_errors() -> None:
    colours = [(90, 90, 90), (230, 159, 0)]
    image = np.full((40, 60, 3), 100, np.uint8)
    target, prediction = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    prediction[:20, :30] = 1
    target[20:, 30:] = 255
    pictures = draw_example(image, target, prediction, colours)
    assert [name for name, _, _ in pictures] == PICTURES
    shown = [decoded(url) for *_, url in pictures]
    assert {one.shape for one in shown} == {(40, 60, 3)}
    assert (shown[0] == 100).all()
    assert tuple(shown[1][30, 40]) == (255, 255, 255)
    assert tuple(shown[2][5, 5]) == colours[1]
    difference = shown[3].astype(int)
    assert abs(difference[5, 5] - INVENTED).max() < 12  # JPEG
    assert abs(difference[30, 40] - 255).max() < 12
    assert np.ptp(difference[5, 50]) < 12


@pytest.mark.parametrize("size", [(2048, 2048), (1500, 700), (30000, 40), (1030, 1024)])
def test_a_single_wrong_pixel_is_visible_in_a_large_image(size: tuple[int, int]) -> None:
    height, width = size
    image, target = np.full((*size, 3), 100, np.uint8), np.zeros(size, np.uint8)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 3, width // 2)):
        prediction = target.copy()
        prediction[y, x] = 1
        *_, errors = draw_example(image, target, prediction, [(0, 0, 0), (9, 9, 9)])
        shown = decoded(errors[2]).astype(int)
        v, u = y * shown.shape[0] // height, x * shown.shape[1] // width
        assert abs(shown[v, u] - INVENTED).max() < 60  # JPEG
        reddish = shown[..., 0] - shown[..., 1] > 60
        assert reddish[max(0, v - 2) : v + 3, max(0, u - 2) : u + 3].sum() == reddish.sum() <= 16


def test_a_large_image_with_many_errors_shows_the_fraction_of_wrong_pixels() -> None:
    image, target = np.zeros((2048, 2048, 3), np.uint8), np.zeros((2048, 2048), np.uint8)
    prediction = target.copy()
    prediction[:1024, ::2] = 1  # half of the upper half's pixels
    prediction[:512, 1024:] = 1  # all of a corner's
    *_, errors = draw_example(image, target, prediction, [(0, 0, 0), (9, 9, 9)])
    shown = decoded(errors[2]).astype(int)
    assert abs(shown[128, 768] - INVENTED).max() < 12  # JPEG
    assert abs(shown[384, 256] - (40 + np.array(INVENTED)) / 2).max() < 12
    assert abs(shown[800, 256] - 40).max() < 12


def test_large_images_are_shown_smaller() -> None:
    ids = np.zeros((3000, 600), np.uint8)
    pictures = draw_example(np.zeros((3000, 600, 3), np.uint8), ids, ids, [(1, 2, 3)])
    assert [decoded(url).shape for *_, url in pictures] == [(1024, 205, 3)] * 4
