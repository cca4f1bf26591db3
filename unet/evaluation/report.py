"""The report of an evaluation: the values that the template report.html shows."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageFilter

from unet.data.classes import IGNORE_INDEX, Colour
from unet.evaluation.measure import rules
from unet.evaluation.summary import Summary
from unet.evaluation.tables import object_rows, object_title, score_rows, threshold_rows
from unet.metrics.precision_recall import Curve
from unet.visualize import (
    ERROR_COLOURS,
    IGNORED_COLOUR,
    errors_to_rgb,
    find_errors,
    fraction_colours,
    mask_to_rgb,
    row_fractions,
)

LONGEST_SIDE = 512
"""Pixels of a picture in the report."""


class Example(NamedTuple):
    """An image to show: the stem of its files, its mean IoU, its pictures from `draw_example`."""

    stem: str
    score: float
    pictures: Sequence[tuple[str, str, str]]


def choose_examples(ranking: Sequence[int], most: int = 4) -> dict[str, list[int]]:
    """Choose the worst, median and best of ranked images, none of them twice; the worst is first.

    `most` is the number of images in each group.
    """
    count = min(most, max(1, len(ranking) // 3))
    middle = (len(ranking) - count) // 2
    worst = list(ranking[:count])
    best = [i for i in ranking[::-1][:count] if i not in worst]
    median = [i for i in ranking[middle : middle + count] if i not in {*worst, *best}]
    groups = {"worst": worst, "median": median, "best": best}
    return {group: members for group, members in groups.items() if members}


def draw_example(
    image: np.ndarray, target: np.ndarray, prediction: np.ndarray, colours: Sequence[Colour]
) -> list[tuple[str, str, str]]:
    """Draw image (H, W, 3) uint8, target, prediction (H, W) and errors for the report.

    Returns:
        Title, CSS class and data URL of each picture.
    """
    nearest = Image.Resampling.NEAREST  # the colours of masks are not mixed
    small, ignored = _shrink(image, Image.Resampling.BOX), target == IGNORE_INDEX
    errors = np.stack(
        [_shrink_errors(one, small.shape[:2]) for one in find_errors(target, prediction)]
    )
    masks = [_shrink(mask_to_rgb(ids, colours), nearest) for ids in (target, prediction)]
    wrong = errors_to_rgb(small, errors, _shrink(ignored, nearest))
    return [
        ("image", "photo", _data_url(small, "JPEG")),
        ("target", "mask", _data_url(masks[0], "PNG")),
        ("prediction", "mask", _data_url(masks[1], "PNG")),
        ("errors", "photo", _data_url(wrong, "JPEG")),
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
    image_scores = summary.columns["mean_iou"][summary.ranking].tolist()
    legend = list(zip(summary.class_names, colours, strict=True))
    if sum(height * width for height, width in summary.sizes) > counted:
        legend.append(("ignored", IGNORED_COLOUR))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html").render(
        summary=summary,
        facts=facts,
        version=version("unet"),
        settings=settings,
        scores=score_rows(summary),
        objects=object_rows(summary),
        objects_are=object_title(summary),
        rules=rules(summary.measures),
        matrix=list(zip(matrix.tolist(), row_fractions(matrix).tolist(), strict=True)),
        fraction_colours=fraction_colours,
        image_scores=image_scores,
        median=np.median(image_scores) if image_scores else None,
        histogram=np.histogram(image_scores, 20, (0, 1))[0].tolist(),
        curve=summary.curve,
        points=_curve_points(summary.curve),
        at_thresholds=threshold_rows(summary),
        longest_side=LONGEST_SIDE,
        legend=[*legend, *list(ERROR_COLOURS.items())[: 3 if len(colours) > 2 else 2]],
        examples=examples,
    )


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


def _shrink(pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """Scale a picture (H, W, 3) uint8 or a mask (H, W) to at most `LONGEST_SIDE`."""
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
    return _shrink(errors.astype(np.uint8) * 255, Image.Resampling.BOX) / 255


def _data_url(pixels: np.ndarray, image_format: str) -> str:
    file = io.BytesIO()
    options = {"quality": 82, "subsampling": 0} if image_format == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(file, image_format, **options)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
