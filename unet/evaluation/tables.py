"""Tables of scores: lists of rows of text. The first row is the head."""

import math
import shutil
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING

from unet.evaluation.measure import CLASS_MEASURES, OBJECT_MEASURES
from unet.runtime.optional import install_command
from unet.runtime.text import format_table, plural

if TYPE_CHECKING:
    from unet.evaluation.summary import Summary

Rows = list[tuple[str, ...]]


def score_rows(summary: "Summary") -> Rows:
    """Return a row for each class, then one for each way to average."""
    names = [name for name in CLASS_MEASURES if name in summary.columns]
    by_class = {name: summary.overall.get(name) or summary.over_images(name)[0] for name in names}
    # Over all classes, every wrong pixel is both a false positive and a false negative.
    accuracy = dict.fromkeys(("dice", "precision", "recall"), summary["pixel_accuracy"])
    over_images = {name: summary.over_images(f"mean_{name}") for name in names}
    without = f"without {summary.class_names[0]}"

    def overall(pattern: str) -> list[float | None]:
        return [summary.overall.get(pattern.format(name)) for name in names]

    rows = [
        *(
            (class_name, [by_class[name][i] for name in names])
            for i, class_name in enumerate(summary.class_names)
        ),
        ("mean", overall("mean_{}")),
        (f"mean {without}", overall("mean_{}_foreground")),
        ("micro", [summary.overall.get(f"micro_{name}", accuracy.get(name)) for name in names]),
        (f"micro {without}", overall("micro_{}_foreground")),
        ("frequency-weighted", overall("frequency_weighted_{}")),
        ("mean over images", [over_images[name][0] for name in names]),
        ("  standard deviation", [over_images[name][1] for name in names]),
    ]
    return [
        ("class", *(CLASS_MEASURES[name] for name in names)),
        *((title, *map(show_score, names, values)) for title, values in rows),
    ]


def object_rows(summary: "Summary") -> Rows:
    """Return a row for each measure of objects; [] if they were not measured."""
    rows = [
        (title, show_score(name, mean), show_score(name, std), str(without))
        for name, title in OBJECT_MEASURES.items()
        if name in summary.columns
        for mean, std, without in [summary.over_images(name)]
    ]
    head = ("measure of objects", "mean", "std", "no score")
    return [head, *rows] if rows else []


def object_title(summary: "Summary") -> str:
    """Say which objects are measured; "" if none are."""
    if summary.measures.objects is None:
        return ""
    name = summary.class_names[summary.measures.objects]
    truth = " against label images" if summary.measures.labelled else ""
    return f"Objects: connected components of {name}{truth}, mean over the images"


def threshold_rows(summary: "Summary") -> Rows:
    """Return a row for each measure of objects that has a best threshold; [] if none has."""
    rows = [
        (
            OBJECT_MEASURES[name],
            show_score(name, best.score_at_half),
            show_score(name, best.score),
            f"{best.threshold:.2f}",
            show_score(name, best.pixel_error),
        )
        for name, best in summary.best_thresholds.items()
    ]
    head = ("measure of objects", "at 0.50", "best", "threshold", "pixel error")
    return [head, *rows] if rows else []


def show_score(name: str, score: float | None) -> str:
    """Return a score as text, - for NaN, nothing for None."""
    if score is None:
        return ""
    if math.isnan(score):
        return "-"
    return f"{score:.2f}" if name == "hausdorff95" else f"{score:.4f}"


def describe(summary: "Summary", width: int | None = None) -> str:
    """Lay out all scores as text of a width, by default that of the terminal."""
    width = width or shutil.get_terminal_size().columns
    rows = score_rows(summary)
    rows.insert(1 + len(summary.class_names), ("",) * len(rows[0]))  # before the averages
    lines = [f"pixel accuracy {show_score('pixel_accuracy', summary['pixel_accuracy'])}"]
    if summary.absent:
        lines.append(
            f"no score for {len(summary.absent)} of {len(summary.class_names)} classes: they have "
            "no pixels in target or prediction"
        )
    if ignored := len(summary.sizes) - len(summary.ranking):
        lines.append(f"no score for {plural(ignored, 'image')}: all pixels are ignored")
    if summary.reliability is not None:
        worst, name = max(zip(summary["calibration_error"], summary.class_names, strict=True))
        lines.append(
            "expected calibration error "
            f"{show_score('', summary['expected_calibration_error'])} of the most probable class; "
            f"the largest of a class is {show_score('', worst)}, of {name}"
        )
    tolerance = summary.measures.boundary_tolerance
    lines.append(
        f"boundary F1 and HD95 need scipy: {install_command('metrics')}"
        if tolerance is None
        else f"boundary F1 within {tolerance:g} pixels; HD95 in pixels, the mean over images"
    )
    if (curve := summary.curve) is not None and curve.best is not None:
        lines.append(
            f"thresholds of {summary.class_names[1]}: average precision "
            f"{curve.average_precision:.4f}, best F1 {curve.f1[curve.best]:.4f} at "
            f"{curve.thresholds[curve.best]:.3f}"
        )
    parts = [format_table(rows, width), "\n".join(fill(line, width) for line in lines)]
    for title, table in (
        (object_title(summary), object_rows(summary)),
        (f"Objects at the best threshold of {summary.class_names[1]}", threshold_rows(summary)),
    ):
        if table:
            parts.append(f"{fill(f'{title}:', width)}\n{format_table(table, width)}")
    return "\n\n".join(parts)


def to_html(rows: Rows) -> str:
    """Lay out a table for a notebook."""
    head, *body = (
        "".join(f"<{tag}>{escape(text)}</{tag}>" for text in row)
        for row, tag in zip(rows, ["th", *["td"] * len(rows)], strict=False)
    )
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
