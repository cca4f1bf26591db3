import json
from pathlib import Path

import pytest
import torch

from unet.evaluation.measure import Measures, measure_image
from unet.evaluation.results import check_results, write_results
from unet.evaluation.summary import Summary, summarize


def summary_of(*names: str) -> Summary:
    target = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    prediction = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1]])
    measures = Measures(class_names=names)
    return summarize([measure_image(prediction, target, measures)], measures, ["7"])


def test_a_folder_holds_the_results_of_one_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "scores"
    check_results(folder, overwrite=False)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "thresholds.csv").write_text("of an evaluation before")
    with pytest.raises(FileExistsError, match=r"thresholds\.csv: exists; pass overwrite=True"):
        check_results(folder, overwrite=False)
    check_results(folder, overwrite=True)
    write_results(folder, summary_of("ground", "cell"), "<html>", {"tta": []})
    names = {"report.html", "metrics.json", "per_image.csv", "confusion.png"}
    assert {path.name for path in folder.iterdir()} == names
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["tta"] == []
    assert (numbers["images"], numbers["classes"]) == (["7"], ["ground", "cell"])
    assert numbers["iou"] == [4 / 6, 2 / 4]
    head, row = (folder / "per_image.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["iou_cell"] == "0.5"


def test_json_has_null_and_csv_an_empty_field_where_there_is_no_score(tmp_path: Path) -> None:
    write_results(tmp_path, summary_of("ground", "cell", "never"), "<html>", {})
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["iou"] == [4 / 6, 2 / 4, None]
    head, row = (tmp_path / "per_image.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["iou_never"] == ""
