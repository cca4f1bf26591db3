"""The files of an evaluation: metrics.json, CSV tables, a picture and the report."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.evaluation.measure import OBJECT_MEASURES, rules
from unet.evaluation.summary import Summary, best_thresholds
from unet.metrics.precision_recall import Curve
from unet.runtime.files import atomic_path, check_writable
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
    """Raise unless results can be written to a folder.

    Raises:
        FileExistsError: if there are results and not `overwrite`.
        PermissionError: if the folder cannot be written to.
    """
    check_writable(folder)
    existing = [folder / name for name in _FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{existing[0]}: exists; pass overwrite=True to replace it, or write to another folder"
        )


def write_results(folder: Path, summary: Summary, report: str, facts: Mapping[str, Any]) -> None:
    """Replace the results in a folder by those of one evaluation.

    metrics.json is written last: if it exists, so do the others.

    Args:
        folder: made if it is missing.
        summary: the scores.
        report: the text of report.html.
        facts: the first entries of metrics.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    _write_csv(folder / "per_image.csv", _image_columns(summary))
    matrix = draw_confusion_matrix(summary.matrix.numpy(), summary.class_names)
    save_picture(folder / "confusion.png", matrix)
    if summary.curve is not None:
        _write_csv(folder / "thresholds.csv", _curve_columns(summary.curve))
    if at_thresholds := summary.at_thresholds:
        columns = {name: [at[name] for at in at_thresholds.values()] for name in OBJECT_MEASURES}
        _write_csv(folder / "object_thresholds.csv", {"threshold": list(at_thresholds), **columns})
    _write_text(folder / "report.html", report)
    numbers = _null_for_nan({**facts, **_numbers(summary)})
    _write_text(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")


def _numbers(summary: Summary) -> dict[str, Any]:
    """The scores as metrics.json holds them."""
    measures, curve = summary.measures, summary.curve
    spreads = {name: summary.over_images(name) for name in summary.columns}
    numbers = {
        "images": list(summary.stems),
        "classes": list(summary.class_names),
        "rules": rules(measures),
        **summary.overall,
        "classes_without_a_score": summary.absent,
        "per_image": {
            key: {name: spread[i] for name, spread in spreads.items()}
            for i, key in enumerate(("mean", "std", "images_without"))
        },
        "boundary_tolerance": measures.boundary_tolerance,
        "confusion_matrix": summary.matrix.tolist(),
    }
    if measures.objects is not None:
        numbers["objects"] = summary.class_names[measures.objects]
        numbers["objects_are"] = "label images" if measures.labelled else "connected components"
    if curve is not None:
        best = curve.best
        numbers["threshold"] = {
            "foreground": summary.class_names[1],
            "average_precision": curve.average_precision,
            "best_f1": None if best is None else float(curve.f1[best]),
            "best_f1_threshold": None if best is None else float(curve.thresholds[best]),
        }
    if summary.at_thresholds:
        numbers["object_thresholds"] = {
            "foreground": summary.class_names[1],
            "best": {name: best._asdict() for name, best in best_thresholds(summary).items()},
        }
    return numbers


def _image_columns(summary: Summary) -> dict[str, Sequence[Any]]:
    """Sizes and scores of each image; scores of a class are named <score>_<class>."""
    heights, widths = zip(*summary.sizes, strict=True)
    columns: dict[str, Sequence[Any]] = {"stem": summary.stems, "height": heights, "width": widths}
    by_class: dict[str, Sequence[Any]] = {}
    for name, values in summary.columns.items():
        if values.ndim == 1:
            columns[name] = values.tolist()
        else:
            names = [f"{name}_{class_name}" for class_name in summary.class_names]
            by_class |= zip(names, values.T.tolist(), strict=True)
    return columns | by_class


def _curve_columns(curve: Curve) -> dict[str, Sequence[Any]]:
    names = ("precision", "recall", "f1", "true_positives", "false_positives", "false_negatives")
    columns = {name: getattr(curve, name).tolist() for name in names}
    return {"threshold": curve.thresholds.tolist(), **columns}


def _write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length; NaN is an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow("" if isinstance(x, float) and math.isnan(x) else x for x in row)
    _write_text(path, file.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        # Names of files that are not UTF-8 keep their bytes.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
