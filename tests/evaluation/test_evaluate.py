import itertools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config, metrics_of, rows_of, write_pairs
from PIL import Image

import unet
from unet import export, load_model, predict
from unet.data.pairing import find_pairs
from unet.evaluation.evaluate import evaluate
from unet.evaluation.results import UnwrittenError
from unet.inference.tta import TtaMode
from unet.inspection.check import check_data
from unet.runtime import optional
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def counted_by_hand(checkpoint: Path, pairs: list, tta: tuple[TtaMode, ...] = ()) -> np.ndarray:
    model, matrix = load_model(checkpoint), np.zeros((2, 2), int)
    for pair in pairs:
        with Image.open(pair.masks[0]) as mask:
            truth = (np.asarray(mask) == 200).astype(int)
        np.add.at(matrix, (truth, predict(model, pair.images[0], tta=tta)), 1)
    return matrix


def test_the_validation_split_is_scored_from_the_checkpoint_alone(
    trained: Path, best: Path, evaluated: Path
) -> None:
    report = metrics_of(evaluated)
    val_pairs = check_data(make_config(trained / "data")).val_pairs
    matrix = counted_by_hand(best, val_pairs)
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["images"] == [pair.stem for pair in val_pairs]
    assert report["iou"][1] == pytest.approx(
        matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum() - matrix[1, 1])
    )
    assert report["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum())


def test_scores_are_returned_and_nothing_is_written_or_printed_unasked(
    best: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = set(best.parent.rglob("*"))
    scores, written = unet.evaluate(best), metrics_of(evaluated)
    assert scores["mean_iou"] == written["mean_iou"]
    assert scores["boundary_f1"] == written["boundary_f1"]
    assert scores.over_images("hausdorff95")[0] == written["per_image"]["mean"]["hausdorff95"]
    assert scores.title == f"{best} on 2 images of the validation split"
    assert set(best.parent.rglob("*")) == files
    assert list(Path().iterdir()) == []
    assert capsys.readouterr().out == ""


def test_other_images_are_scored(best: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "new", 3, seed=7)
    images, masks = str(tmp_path / "new" / "images"), str(tmp_path / "new" / "masks")
    scores = evaluate(best, images=images, masks=masks)
    matrix = counted_by_hand(best, find_pairs(Path(), [images], masks)[0])
    assert scores.matrix.tolist() == matrix.tolist()


def test_the_validation_images_are_those_of_the_run(best: Path, copied: Path) -> None:
    overrides = [f"data.root={copied}"]
    before = evaluate(best, overrides=overrides)
    write_pairs(copied / "more", 4, seed=8)
    for i, folder in itertools.product(range(4), ("images", "masks")):
        (copied / "more" / folder / f"{i}.png").rename(copied / folder / f"1{i}.png")
    after = evaluate(best, overrides=overrides)
    assert after.stems == before.stems
    assert torch.equal(after.matrix, before.matrix)
    stem = before.stems[0]
    for folder in ("images", "masks"):
        (copied / folder / f"{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of the 2 validation images .* \({stem}\)"):
        evaluate(best, overrides=overrides)


def test_data_that_moved_is_found_by_an_override(best: Path, evaluated: Path, copied: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder"):
        evaluate(best, overrides=["data.root=missing"])
    scores = evaluate(best, overrides=[f"data.root={copied}"])
    assert scores["mean_iou"] == metrics_of(evaluated)["mean_iou"]


def test_folders_of_validation_images_suffice(data_root: Path) -> None:
    for folder in ("images", "masks"):
        (data_root / "val" / folder).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            (data_root / folder / name).rename(data_root / "val" / folder / name)
    folders = "data.validation={images: val/images, masks: val/masks}"
    run = train(make_config(data_root, folders, "train.epochs=1"))
    shutil.rmtree(data_root / "images")
    shutil.rmtree(data_root / "masks")
    assert evaluate(run / "best.pt").stems == ("1", "2")


def test_results_are_not_overwritten_unasked(best: Path, evaluated: Path) -> None:
    folder = shutil.copytree(evaluated, "scores")
    with pytest.raises(FileExistsError, match=r"report\.html: exists; pass overwrite=True"):
        evaluate(best, out=folder)
    evaluate(best, out=folder, overwrite=True)


def test_unknown_mask_values_are_an_error_before_anything_is_written(
    best: Path, new: dict[str, str]
) -> None:
    Image.fromarray(np.full((36, 52), 77, np.uint8)).save(Path(new["masks"]) / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: got the mask value 77"):
        evaluate(best, **new, out="scores")
    assert not Path("scores").exists()


def test_the_errors_of_all_files_are_shown_together(best: Path, new: dict[str, str]) -> None:
    Path(new["images"], "1.png").write_bytes(b"no image")
    Path(new["masks"], "3.png").unlink()
    Image.fromarray(np.full((36, 52), 9, np.uint8)).save(Path(new["masks"], "3.png"))
    with pytest.raises(ValueError, match=r"(?s)1\.png: cannot be read.*3\.png: .*9"):
        evaluate(best, **new, out="scores")
    assert not Path("scores").exists()


def test_arguments_that_contradict_each_other_are_an_error(best: Path, new: dict[str, str]) -> None:
    for name, other in (("images", "masks"), ("masks", "images")):
        with pytest.raises(ValueError, match=f"got {name}=DIR without {other}=DIR; give both"):
            evaluate(best, **{name: new[name]})
    for options in ({"label_images": "cells", "objects": True}, {**new, "label_images": "cells"}):
        with pytest.raises(ValueError, match="label_images=DIR needs images=DIR and objects=True"):
            evaluate(best, **options)
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"got boundary_tolerance=.*pixels, 0 or more"):
            evaluate(best, boundary_tolerance=tolerance)


def test_a_model_where_a_path_is_expected_is_an_error_in_words(best: Path) -> None:
    for wrong in (None, 5, load_model(best), [best, None]):
        with pytest.raises(TypeError, match=r"^checkpoint: got \w+, expected a path$"):
            evaluate(wrong)


def test_the_folder_of_a_run_gives_its_best_checkpoint(best: Path, evaluated: Path) -> None:
    scores = evaluate(str(best.parent))
    assert scores.mean_iou == metrics_of(evaluated)["mean_iou"]
    assert scores.title == evaluate(best).title


def test_each_image_has_a_row_and_is_counted_once(best: Path, new: dict[str, str]) -> None:
    scores = evaluate(best, **new, out="scores")
    names = {"metrics.json", "per_image.csv", "confusion.png", "report.html"}
    assert {file.name for file in Path("scores").iterdir()} == names
    report, rows = metrics_of("scores"), rows_of(Path("scores/per_image.csv"))
    assert [row["stem"] for row in rows] == report["images"] == list("01234")
    assert {(row["height"], row["width"]) for row in rows} == {("36", "52")}
    assert np.sum(report["confusion_matrix"]) == 4 * 36 * 52
    pairs = find_pairs(Path(), [new["images"]], new["masks"])[0]
    total, means = np.zeros((2, 2), int), []
    for row, pair in zip(rows, pairs[:4], strict=False):
        matrix = counted_by_hand(best, [pair])
        iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
        assert float(row["iou_box"]) == pytest.approx(iou[1])
        assert float(row["dice_box"]) == pytest.approx(2 * iou[1] / (1 + iou[1]))
        assert float(row["mean_iou"]) == pytest.approx(iou.mean())
        assert float(row["pixel_accuracy"]) == pytest.approx(matrix.trace() / matrix.sum())
        assert float(row["boundary_f1_box"]) >= 0
        total += matrix
        means.append(iou.mean())
    assert report["confusion_matrix"] == total.tolist() == scores.matrix.tolist()
    assert set(rows[4].values()) == {"4", "36", "52", ""}  # no score
    per_image = report["per_image"]
    assert per_image["mean"]["mean_iou"] == pytest.approx(np.mean(means))
    assert per_image["std"]["mean_iou"] == pytest.approx(np.std(means, ddof=1))
    assert per_image["images_without"]["mean_iou"] == 1
    assert report["boundary_tolerance"] == 2
    assert "within 2 pixels" in report["rules"]["boundary F1"]


def test_the_report_shows_the_worst_image_first_and_the_best_last(
    best: Path, new: dict[str, str]
) -> None:
    evaluate(best, **new, out="scores")
    rows = [row for row in rows_of(Path("scores/per_image.csv")) if row["mean_iou"]]
    ranked = sorted(rows, key=lambda row: float(row["mean_iou"]))
    html = Path("scores/report.html").read_text()
    shown = re.findall(r"<figcaption><b>(\w+)</b>\n<span>mean IoU ([\d.]+)<", html)
    assert shown[0] == (ranked[0]["stem"], f"{float(ranked[0]['mean_iou']):.4f}")
    assert shown[-1] == (ranked[-1]["stem"], f"{float(ranked[-1]['mean_iou']):.4f}")
    assert len(shown) == 3
    assert re.findall(r"<(?:h3|summary)>(\w+)</", html) == ["Worst", "Median", "Best"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_single_image_is_scored_whatever_bytes_its_name_has(best: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", 1)
    for folder in ("images", "masks"):
        (tmp_path / "one" / folder / "0.png").rename(
            tmp_path / "one" / folder / os.fsdecode(b"\xff <b>.png")
        )
    folders = {"images": f"{tmp_path}/one/images", "masks": f"{tmp_path}/one/masks"}
    evaluate(best, **folders, out="scores")
    assert b"\n\xff <b>,36,52," in Path("scores/per_image.csv").read_bytes()
    html = Path("scores/report.html").read_bytes()
    assert b"<figcaption><b>\xff &lt;b&gt;</b>\n<span>mean IoU" in html
    assert b"images/%FF%20%3Cb%3E.png" in html
    assert b": 1 image</title>" in html
    report = metrics_of("scores")
    assert report["per_image"]["std"]["mean_iou"] is None
    assert report["per_image"]["mean"]["mean_iou"] == pytest.approx(report["mean_iou"])


def test_images_without_a_pixel_that_counts_have_no_score(best: Path, new: dict[str, str]) -> None:
    masks = Path(new["masks"])
    for i in range(4):
        (masks / f"{i}.png").write_bytes((masks / "4.png").read_bytes())
    evaluate(best, **new, objects=True, thresholds=True, out="scores")
    report = metrics_of("scores")
    assert report["mean_iou"] is report["per_image"]["mean"]["pixel_error"] is None
    assert report["threshold"]["best_f1"] is None
    assert report["object_thresholds"]["best"] == {}
    assert "NaN" not in Path("scores/metrics.json").read_text()
    assert report["classes_without_a_score"] == ["ground", "box"]


def test_test_time_augmentation_scores_the_masks_that_predict_gives_with_it(
    best: Path, trained: Path, evaluated: Path
) -> None:
    scores = evaluate(best, tta=("flips", "scales"), out="scores")
    assert scores.title.endswith("the validation split, with flips and scales")
    report = metrics_of("scores")
    assert report["tta"] == ["flips", "scales"]
    assert "flips, scales" in Path("scores/report.html").read_text()
    pairs = check_data(make_config(trained / "data")).val_pairs
    matrix = counted_by_hand(best, pairs, ("flips", "scales"))
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["confusion_matrix"] != metrics_of(evaluated)["confusion_matrix"]


def test_without_scipy_boundaries_are_not_measured(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda _: None)
    evaluate(best, out="scores")
    report = metrics_of("scores")
    assert report["boundary_tolerance"] is None
    assert "boundary_f1" not in report
    assert "needs scipy, of the extra metrics" in Path("scores/report.html").read_text()
    with pytest.raises(ValueError, match=r"^scores of objects: needs scikit-image; install it"):
        evaluate(best, objects=True)


def test_a_folder_that_cannot_be_written_is_an_error_before_work(best: Path) -> None:
    Path("taken").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        evaluate(best, out="taken/scores")
    assert Path("taken").read_text() == "mine"


def test_results_that_cannot_be_written_leave_those_of_before_and_return_the_scores(
    best: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(evaluated, "scores")
    before = {path.name: path.read_bytes() for path in Path("scores").iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "a temporary name")

    monkeypatch.setattr("unet.evaluation.results.save_picture", fail)
    with pytest.raises(UnwrittenError, match=r"No space left on device: 'scores'") as caught:
        evaluate(best, tta=["flips"], out="scores", overwrite=True)
    assert caught.value.scores.title.endswith("with flips")
    assert {path.name: path.read_bytes() for path in Path("scores").iterdir()} == before
    with pytest.raises(UnwrittenError):
        evaluate(best, out="new/scores")
    assert list(Path("new/scores").iterdir()) == []


def test_checkpoints_with_different_validation_images_need_other_images(
    best: Path, data_root: Path, new: dict[str, str]
) -> None:
    settings = ("data.validation.seed=1", "data.ignore=[7]", "train.epochs=1")
    other = train(make_config(data_root, *settings)) / "best.pt"
    with pytest.raises(ValueError, match="1 of 2 checkpoints have other validation images"):
        evaluate([best, other])
    scores = evaluate([best, other], **new)
    assert scores.title.startswith("ensemble of 2 checkpoints on 5 images of ")
    assert np.sum(scores.matrix.numpy()) == 4 * 36 * 52


def test_classes_are_renamed_and_coloured_after_training(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(best.parent)
    changes = {"data.names": {"box": "cell"}, "data.colours": {"box": [1, 2, 3]}}
    model = load_model(best, overrides=changes)
    assert model.classes.names == ("ground", "cell")
    assert model.classes.values == (0, 200)
    assert model.classes.colours[1] == (1, 2, 3)
    scores = evaluate(best, overrides=changes)
    assert scores.to_dict()["classes"] == ["ground", "cell"]
    assert scores.iou == evaluate(best).iou
    export(best, best.parent / "renamed.pt2", overrides=changes)
    files = {"unet.json": ""}
    torch.export.load(best.parent / "renamed.pt2", extra_files=files)
    assert json.loads(json.loads(files["unet.json"])["classes"]) == {"ground": 0, "cell": 200}

    for wrong, problem in (
        ({"data.names": {"bax": "cell"}}, "data.names.*: got bax, expected names in data.classes"),
        ({"data.names": {"box": "ground"}}, "data.names.*: got ground, ground, expected a diff"),
        (
            {"data.colours": {"box": [1, 2]}},
            "data.colours.*: got a section with keys, expected different names, each with a list",
        ),
        ({"data.classes": {"ground": 0, "cell": 200}}, r"rename classes with data\.names"),
    ):
        with pytest.raises(ValueError, match=problem):
            load_model(best, overrides=wrong)
    with pytest.raises(ValueError, match="renames the classes of a trained model; to train, write"):
        unet.train(make_config(best.parent / "data", "data.names={box: cell}"))
