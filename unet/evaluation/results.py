"""The files of an evaluation: metrics.json, CSV tables, a picture and the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unet.evaluation.summary import Summary
from unet.metrics.precision_recall import Curve
from unet.runtime.files import check_writable, write_csv
from unet.visualize import draw_confusion_matrix, save_picture

_FILES = (
    "report.html",
    "per_image.csv",
    "confusion.png",
    "thresholds.csv",
    "object_thresholds.csv",
    "metrics.json",
)
"""The files of an evaluation; metrics.json is replaced last."""


def result_files(summary: Summary) -> list[str]:
    """List the files of an evaluation."""
    missing = {
        "thresholds.csv": summary.curve is None,
        "object_thresholds.csv": not summary.at_thresholds,
    }
    return [name for name in _FILES if not missing.get(name)]


class UnwrittenError(OSError):
    """The results could not be written; `scores` has them."""

    def __init__(self, scores: Summary, folder: Path, error: OSError) -> None:
        by_system = error.errno is not None
        super().__init__(*([error.errno, error.strerror, str(folder)] if by_system else error.args))
        self.scores = scores


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
    """Replace the results in a folder by those of one evaluation, all or none.

    Args:
        folder: made if it is missing.
        summary: the scores.
        report: the text of report.html.
        facts: the first entries of metrics.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        _write_files(Path(temporary), summary, report, facts)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        for name in result_files(summary):
            Path(temporary, name).replace(folder / name)


def _write_files(folder: Path, summary: Summary, report: str, facts: Mapping[str, Any]) -> None:
    numbers = json.dumps({**facts, **summary.to_dict()}, indent=2) + "\n"
    for name, text in (("report.html", report), ("metrics.json", numbers)):
        # Names of files that are not UTF-8 keep their bytes.
        (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    write_csv(folder / "per_image.csv", _rows(_image_columns(summary)))
    matrix = draw_confusion_matrix(summary.matrix.numpy(), summary.class_names)
    save_picture(folder / "confusion.png", matrix)
    if summary.curve is not None:
        write_csv(folder / "thresholds.csv", _rows(_curve_columns(summary.curve)))
    if summary.at_thresholds:
        rows = [{"threshold": t, **means} for t, means in summary.at_thresholds.items()]
        write_csv(folder / "object_thresholds.csv", rows)


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


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Turn columns of equal length into rows."""
    values = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
