"""The report of an evaluation: the values that the template report.html shows."""

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageFilter

from unet.data.classes import IGNORE_INDEX, Colour
from unet.data.pairing import Pair
from unet.evaluation.measure import rules
from unet.evaluation.results import result_files
from unet.evaluation.summary import Summary
from unet.evaluation.tables import (
    object_rows,
    object_title,
    score_rows,
    show_score,
    threshold_rows,
)
from unet.metrics.calibration import reliability_curve
from unet.metrics.confusion import row_fractions
from unet.metrics.precision_recall import Curve
from unet.runtime.optional import unet_version
from unet.runtime.text import plural, shorten
from unet.visualize import (
    IGNORED_COLOUR,
    error_colours,
    errors_to_rgb,
    find_errors,
    mask_to_rgb,
)

LONGEST_SIDE = 1024
"""Pixels of a picture in the report."""


class Example(NamedTuple):
    """An image to show."""

    stem: str
    score: float
    """Mean IoU."""
    errors: Mapping[str, float]
    """Fractions of the counted pixels, see `find_errors`."""
    pictures: Sequence[tuple[str, str, str]]
    """Title, CSS class and data URL."""
    files: Sequence[tuple[str, str]]
    """Name of each file and its link, relative to the report."""


class Histogram(NamedTuple):
    """Number of images in ranges of their scores, and the edges of the ranges."""

    counts: Sequence[int]
    edges: Sequence[str]
    ticks: Sequence[tuple[float, str]]
    """Edges to label: place from 0 to 1, and text."""
    lowest: float
    median: float
    highest: float


def choose_examples(ranking: Sequence[int]) -> dict[str, list[int]]:
    """Choose the four worst, median and best of ranked images, none twice; the worst is first."""
    count = min(4, max(1, len(ranking) // 3))
    middle = (len(ranking) - count) // 2
    worst = list(ranking[:count])
    best = [i for i in ranking[::-1][:count] if i not in worst]
    median = [i for i in ranking[middle : middle + count] if i not in {*worst, *best}]
    groups = {"worst": worst, "median": median, "best": best}
    return {group: members for group, members in groups.items() if members}


def make_example(
    pair: Pair,
    folder: Path,
    score: float,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    colours: Sequence[Colour],
) -> Example:
    """Draw and describe an image.

    Args:
        pair: its files.
        folder: of the report.
        score: mean IoU.
        arrays: image (H, W, 3) uint8, target and prediction (H, W).
        colours: one for each class.
    """
    _, target, prediction = arrays
    errors = find_errors(target, prediction).sum((1, 2)) / (target != IGNORE_INDEX).sum()
    return Example(
        stem=pair.stem,
        score=score,
        errors=dict(zip(error_colours(colours), errors.tolist(), strict=False)),
        pictures=draw_example(*arrays, colours),
        files=link_files(pair, folder),
    )


def draw_example(
    image: np.ndarray, target: np.ndarray, prediction: np.ndarray, colours: Sequence[Colour]
) -> list[tuple[str, str, str]]:
    """Draw image (H, W, 3) uint8, target, prediction (H, W) and errors for the report.

    Returns:
        Title, CSS class and data URL of each picture.
    """
    small, ignored = shrink(image), target == IGNORE_INDEX
    errors = np.stack(
        [_shrink_errors(one, small.shape[:2]) for one in find_errors(target, prediction)]
    )
    masks = [shrink(mask_to_rgb(ids, colours), nearest=True) for ids in (target, prediction)]
    in_colours = error_colours(colours).values()
    wrong = errors_to_rgb(small, errors, shrink(ignored, nearest=True), in_colours)
    return [
        ("image", "photo", data_url(small, "JPEG")),
        ("target", "mask", data_url(masks[0], "PNG")),
        ("prediction", "mask", data_url(masks[1], "PNG")),
        ("errors", "photo", data_url(wrong, "JPEG")),
    ]


def render_report(
    summary: Summary,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    colours: Sequence[Colour],
    examples: Mapping[str, Sequence[Example]],
) -> str:
    """Return the report as HTML.

    Args:
        summary: the scores.
        facts: checkpoints, source of the images and tta.
        settings: of the model, by their dotted paths.
        colours: one for each class.
        examples: from `choose_examples`.
    """
    matrix, counted = summary.matrix.numpy(), int(summary.matrix.sum())
    scored = summary.columns["mean_iou"][summary.ranking].tolist()
    legend = list(zip(summary.class_names, colours, strict=True))
    if sum(height * width for height, width in summary.sizes) > counted:
        legend.append(("ignored", IGNORED_COLOUR))
    legend += error_colours(colours).items()
    numbers = {
        "mean IoU": "mean_iou",
        f"mean IoU without {summary.class_names[0]}": "mean_iou_foreground",
        "mean Dice": "mean_dice",
        "pixel accuracy": "pixel_accuracy",
    }
    if summary.reliability is not None:
        numbers["calibration error"] = "expected_calibration_error"
    return (
        make_environment()
        .get_template("report.html")
        .render(
            summary=summary,
            facts=facts,
            version=unet_version(),
            settings={
                name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for name, value in settings.items()  # as in YAML
            },
            numbers={title: show_score(name, summary[name]) for title, name in numbers.items()}
            | {"images": len(summary.sizes)},
            files=[name for name in result_files(summary) if name != "report.html"],
            scores=score_rows(summary),
            colours=colours,
            errors=error_colours(colours),
            objects=object_rows(summary),
            objects_are=object_title(summary),
            rules=rules(summary.measures),
            matrix=list(zip(matrix.tolist(), row_fractions(matrix).tolist(), strict=True)),
            histogram=make_histogram(scored) if scored else None,
            ignored=len(summary.sizes) - len(scored),
            reliability=_reliability(summary, colours),
            curve=summary.curve,
            points=_curve_points(summary.curve),
            at_thresholds=threshold_rows(summary),
            longest_side=LONGEST_SIDE,
            legend=legend,
            examples=examples,
            plural=plural,
        )
    )


def make_environment() -> Environment:
    """Return what fills in the templates next to this file."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def make_histogram(scores: Sequence[float]) -> Histogram:
    """Count sorted scores from 0 to 1 in 5 to 20 ranges, not more than scores, that cover all."""
    lowest, highest, most = scores[0], scores[-1], max(5, min(20, len(scores)))
    for parts in (1000, 500, 200, 100, 50, 20, 10, 5):  # of the range from 0 to 1
        first, last = math.floor(lowest * parts), min(parts, math.floor(highest * parts) + 1)
        if last - first <= most:
            break
    last = min(parts, max(last, first + 5))
    first = min(first, last - 5)
    texts = [f"{i / parts:.{2 if parts <= 100 else 3}f}" for i in range(first, last + 1)]
    counts = np.histogram(scores, [i / parts for i in range(first, last + 1)])[0].tolist()
    step = math.ceil((last - first) / 5)
    ticks = [(i / len(counts), texts[i]) for i in range(0, len(texts), step)]
    return Histogram(counts, texts, ticks, lowest, float(np.median(scores)), highest)


def _reliability(summary: Summary, colours: Sequence[Colour]) -> list[dict[str, Any]]:
    """Describe the diagrams of the most probable class and of each class.

    Points are places from 0 to 1, a label, and the fraction of the pixels.
    """
    if summary.reliability is None or not summary.ranking:
        return []
    names = [*zip(summary.class_names, colours, strict=True), ("most probable class", None)]
    errors = [*summary["calibration_error"], summary["expected_calibration_error"]]
    diagrams = []
    for (name, colour), error, counts in zip(names, errors, summary.reliability, strict=True):
        curve, total = reliability_curve(counts), counts[0].sum()
        points = [
            (mean, fraction, f"{pixels:,} pixels", pixels / total)
            for pixels, mean, fraction in zip(*curve.values(), strict=True)
            if pixels
        ]
        diagrams.append({"name": name, "colour": colour, "error": error, "points": points})
    return [diagrams[-1], *diagrams[:-1]]


def link_files(pair: Pair, folder: Path) -> list[tuple[str, str]]:
    """Return what each file is, and its address relative to the folder of the report."""
    parts = {
        "image": pair.images,
        "mask": pair.masks,
        "label image": filter(None, [pair.instances]),
    }
    return [
        (f"{part} {shorten(Path(one).name, 40)}", _link(one, folder))
        for part, files in parts.items()
        for one in files
    ]


def _link(file: str, folder: Path) -> str:
    """Return the address of a file, relative to the folder of the report."""
    path = os.path.relpath(Path(file).resolve(), folder.resolve())
    return quote(os.fsencode(Path(path).as_posix()))


def _curve_points(curve: Curve | None) -> list[tuple[float, float]]:
    """Return the corners (recall, precision) of the steps of a curve; [] without foreground."""
    points: list[tuple[float, float]] = []
    if curve is not None and curve.best is not None:
        before = 0.0
        both = zip(curve.recall[::-1].tolist(), curve.precision[::-1].tolist(), strict=True)
        for recall, precision in both:
            if precision == precision:  # not NaN: some pixels are predicted
                points += [(before, precision), (recall, precision)]
                before = recall
    return points


def shrink(pixels: np.ndarray, nearest: bool = False) -> np.ndarray:
    """Scale a picture (H, W, 3) uint8 or a mask (H, W) to at most `LONGEST_SIDE`.

    `nearest` keeps the colours of masks, others are averaged.
    """
    resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BOX
    scale = min(1.0, LONGEST_SIDE / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))


def _shrink_errors(errors: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Scale a bool mask (H, W) to a size: the fraction of each pixel that is wrong.

    If errors are rare, pixels with an error and their neighbours are 1: they would be too pale.
    """
    if errors.shape == size:
        return errors
    rows, columns = (
        np.arange(small) * side // small for small, side in zip(size, errors.shape, strict=True)
    )
    small = np.logical_or.reduceat(np.logical_or.reduceat(errors, rows, 0), columns, 1)
    if small.mean() < 0.05:
        grown = Image.fromarray(small.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
        return np.asarray(grown, bool)
    return shrink(errors.astype(np.uint8) * 255) / 255


def data_url(pixels: np.ndarray, image_format: str) -> str:
    """Return the address that holds a picture itself, as JPEG or PNG."""
    file = io.BytesIO()
    options = {"quality": 82, "subsampling": 0} if image_format == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(file, image_format, **options)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
