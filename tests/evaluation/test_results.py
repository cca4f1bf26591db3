import json
from pathlib import Path

import pytest
import torch

from unet.evaluation.measurements import Measures, Summary, measure, summarize
from unet.evaluation.results import check_results, score_table, write_results


def summary_of(*names: str) -> Summary:
    target = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    prediction = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1]])
    image = measure(prediction, target, len(names), Measures())
    return summarize([image], names, Measures())


def test_the_table_is_one_screen_and_shows_what_has_no_score() -> None:
    summary = summary_of("ground", "cell", *(f"never {i}" for i in range(10)))
    lines = score_table(summary).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["class", "IoU", "Dice", "precision", "recall"]


def test_a_folder_holds_the_results_of_one_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "scores"
    check_results(folder, overwrite=False)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "thresholds.csv").write_text("of an evaluation before")
    with pytest.raises(FileExistsError, match=r"thresholds\.csv: exists; pass --overwrite"):
        check_results(folder, overwrite=False)
    check_results(folder, overwrite=True)
    written = write_results(folder, summary_of("ground", "cell"), ["7"], "<html>", {"tta": []})
    assert {path.name for path in folder.iterdir()} == set(written)
    assert set(written) == {"report.html", "metrics.json", "per_image.csv", "confusion.png"}
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["tta"] == []
    assert (numbers["images"], numbers["classes"]) == (["7"], ["ground", "cell"])
    assert numbers["iou"] == [4 / 6, 2 / 4]
    head, row = (folder / "per_image.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["iou_cell"] == "0.5"


def test_json_has_null_where_there_is_no_score(tmp_path: Path) -> None:
    write_results(tmp_path, summary_of("ground", "cell", "never"), ["7"], "<html>", {})
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["iou"] == [4 / 6, 2 / 4, None]
    head, row = (tmp_path / "per_image.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["iou_never"] == ""
