"""The results of an evaluation: a table to read, and the files of its folder."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet.evaluation.measurements import (
    OBJECT_MEASURES,
    THRESHOLD_HEAD,
    Summary,
    best_thresholds,
    object_rows,
    object_title,
    rules,
    score_head,
    score_rows,
    show_score,
    threshold_rows,
)
from unet.metrics.precision_recall import Curve
from unet.runtime.files import atomic_path, check_writable
from unet.runtime.text import table
from unet.visualize import draw_confusion_matrix, save_picture

_FILES = (
    "report.html",
    "metrics.json",
    "per_image.csv",
    "confusion.png",
    "thresholds.csv",
    "object_thresholds.csv",
)


def check_results(folder: Path, overwrite: bool) -> None:
    """Raise unless results can be written there, before work starts.

    Raises:
        FileExistsError: if there are results and not `overwrite`.
        PermissionError: if the folder cannot be written to.
    """
    check_writable(folder)
    there = [folder / name for name in _FILES if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{there[0]}: exists; pass --overwrite to replace it, or -o FOLDER for another place"
        )


def score_table(summary: Summary) -> str:
    """Lay out the scores as text: the classes, then the ways to average them."""
    head, rows = score_head(summary), score_rows(summary)
    # Lines that are averages stand apart.
    lines = table([(row.name, *row.cells) for row in (head, *rows)]).splitlines()
    lines.insert(1 + len(summary.names), "")
    having = len(summary.ranking)
    notes = [f"pixel accuracy {show_score('pixel_accuracy', summary.overall['pixel_accuracy'])}"]
    if summary.absent:
        notes.append(
            f"{len(summary.absent)} class(es) in neither target nor prediction have no score"
        )
    if having < len(summary.sizes):
        notes.append(f"{len(summary.sizes) - having} image(s) without a pixel that counts")
    distance = summary.measures.boundary_distance
    notes.append(
        "boundary F1 and HD95 need unet[metrics]"
        if distance is None
        else f"boundary F1 within {distance:g} pixels; HD95 in pixels, the mean over images"
    )
    if summary.measures.objects is not None:
        cells = [
            ("object measures", "mean", "spread", "without"),
            *((row.name, *row.cells) for row in object_rows(summary)),
        ]
        notes.append(f"\n{object_title(summary)}, over images:\n{table(cells)}")
    curve = summary.curve
    if curve is not None and curve.best is not None:
        notes.append(
            f"\nthresholds of {summary.names[1]}: average precision "
            f"{curve.average_precision:.4f}, best F1 {curve.f1[curve.best]:.4f} at "
            f"{curve.thresholds[curve.best]:.3f}"
        )
    if rows := threshold_rows(summary):
        cells = [(row.name, *row.cells) for row in (THRESHOLD_HEAD, *rows)]
        notes.append(f"\nobjects at the best threshold of {summary.names[1]}:\n{table(cells)}")
    return "\n".join([*lines, "", *notes])


def write_results(
    folder: Path, summary: Summary, stems: Sequence[str], report: str, facts: dict[str, Any]
) -> list[str]:
    """Write all files, each whole or not at all; metrics.json last: with it all others are there.

    What is there from an evaluation before is removed first.

    Args:
        folder: for them; made if it is missing.
        summary: the scores.
        stems: the names of the images.
        report: an HTML file.
        facts: what metrics.json says before the scores.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    _write_text(folder / "per_image.csv", _csv(_image_rows(summary, stems)))
    save_picture(
        folder / "confusion.png", draw_confusion_matrix(summary.matrix.numpy(), summary.names)
    )
    if summary.curve is not None:
        _write_text(folder / "thresholds.csv", _csv(_threshold_rows(summary.curve)))
    if summary.at_thresholds:
        _write_text(folder / "object_thresholds.csv", _csv(_object_threshold_rows(summary)))
    _write_text(folder / "report.html", report)
    numbers = {**facts, "images": list(stems), **_numbers(summary)}
    _write_text(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    return [name for name in _FILES if (folder / name).exists()]


def _numbers(summary: Summary) -> dict[str, Any]:
    """What metrics.json says of the scores."""
    spreads = {name: summary.over_images(name) for name in summary.columns}
    numbers = {
        "classes": list(summary.names),
        "rules": rules(summary),
        **summary.overall,
        "classes_without_a_score": summary.absent,
        "per_image": {
            what: {name: parts[i] for name, parts in spreads.items()}
            for i, what in enumerate(("mean", "std", "images_without"))
        },
        "boundary_distance": summary.measures.boundary_distance,
        "confusion_matrix": summary.matrix.tolist(),
    }
    if summary.measures.objects is not None:
        numbers["objects"] = summary.names[summary.measures.objects]
        numbers["objects_are"] = "label images" if summary.measures.labelled else "connected parts"
    if (curve := summary.curve) is not None:
        numbers["threshold"] = {
            "foreground": summary.names[1],
            "average_precision": curve.average_precision,
            "best_f1": None if curve.best is None else float(curve.f1[curve.best]),
            "best_f1_threshold": None
            if curve.best is None
            else float(curve.thresholds[curve.best]),
        }
    if summary.at_thresholds:
        numbers["object_thresholds"] = {
            "foreground": summary.names[1],
            "best": {name: best._asdict() for name, best in best_thresholds(summary).items()},
        }
    without_nan: dict[str, Any] = _without_nan(numbers)
    return without_nan


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        # Names of files that are no UTF-8 stay the bytes that they are.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    """As text of comma-separated values; what has no score is empty."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(
        ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        for row in rows
    )
    return file.getvalue()


def _image_rows(summary: Summary, stems: Sequence[str]) -> list[list[Any]]:
    """A head, then a row for each image: the scores of the classes as iou_<class>."""
    columns: dict[str, list[Any]] = {
        "stem": list(stems),
        "height": [height for height, _ in summary.sizes],
        "width": [width for _, width in summary.sizes],
    }
    for name, values in summary.columns.items():
        if values.ndim == 1:
            columns[name] = values.tolist()
    for name, values in summary.columns.items():
        if values.ndim == 2:
            for class_name, of_class in zip(summary.names, values.T.tolist(), strict=True):
                columns[f"{name}_{class_name}"] = of_class
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _threshold_rows(curve: Curve) -> list[list[Any]]:
    names = (
        "thresholds",
        "precision",
        "recall",
        "f1",
        "true_positives",
        "false_positives",
        "false_negatives",
    )
    columns = [getattr(curve, name).tolist() for name in names]
    return [["threshold", *names[1:]], *map(list, zip(*columns, strict=True))]


def _object_threshold_rows(summary: Summary) -> list[list[Any]]:
    rows = [[threshold, *means.values()] for threshold, means in summary.at_thresholds.items()]
    return [["threshold", *OBJECT_MEASURES], *rows]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there is no score."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
