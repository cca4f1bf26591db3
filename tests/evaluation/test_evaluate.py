import csv
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
from helpers import make_config, write_instances, write_pairs
from PIL import Image

from unet import load_model, predict
from unet.data.image_io import read_image, to_float
from unet.data.label_images import connected_components
from unet.data.pairing import find_pairs
from unet.evaluation.evaluate import confusion_of_pairs, evaluate
from unet.evaluation.measurements import OBJECT_MEASURES
from unet.inference.predict import Options
from unet.inference.tta import Kind
from unet.inspection.check import check_data
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import membrane_scores
from unet.runtime import optional as extras
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.fixture
def run(data_root: Path, workdir: Path) -> Path:
    assert workdir == Path.cwd()
    return train(make_config(data_root, "train.epochs=4", "train.previews=0"))


def counted_by_hand(checkpoint: Path, pairs: list, tta: tuple[Kind, ...] = ()) -> np.ndarray:
    model, matrix = load_model(checkpoint), np.zeros((2, 2), int)
    for pair in pairs:
        with Image.open(pair.masks[0]) as mask:
            truth = (np.asarray(mask) == 200).astype(int)
        np.add.at(matrix, (truth, predict(model, pair.images[0], Options(tta=tta))), 1)
    return matrix


def test_the_validation_split_is_scored_from_the_checkpoint_alone(
    run: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluate([run / "best.pt"])
    assert path == run / "evaluation_best" / "metrics.json"
    report = json.loads(path.read_text())
    val_pairs = check_data(make_config(data_root)).val_pairs
    matrix = counted_by_hand(run / "best.pt", val_pairs)
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["images"] == [pair.stem for pair in val_pairs]
    assert report["iou"][1] == pytest.approx(
        matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum() - matrix[1, 1])
    )
    assert report["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    shown = capsys.readouterr().out
    assert f"{report['iou'][1]:.4f}" in shown
    assert "2 images of the validation split" in shown


def test_another_folder_is_scored(run: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "new", 3, seed=7)
    images, masks = tmp_path / "new" / "images", tmp_path / "new" / "masks"
    path = evaluate(
        [run / "last.pt"], images=str(images), masks=str(masks), out=tmp_path / "scores"
    )
    report = json.loads(path.read_text())
    matrix = counted_by_hand(run / "last.pt", find_pairs(Path(), [str(images)], str(masks))[0])
    assert report["confusion_matrix"] == matrix.tolist()


def test_the_validation_images_stay_those_of_the_run(run: Path, data_root: Path) -> None:
    before = json.loads(evaluate([run / "best.pt"]).read_text())
    write_pairs(data_root / "more", 4, seed=8)
    for i, folder in itertools.product(range(4), ("images", "masks")):
        (data_root / "more" / folder / f"{i}.png").rename(data_root / folder / f"1{i}.png")
    assert json.loads(evaluate([run / "best.pt"], overwrite=True).read_text()) == before
    stem = before["images"][0]
    for folder in ("images", "masks"):
        (data_root / folder / f"{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no pair {stem}, expected all files of the 2"):
        evaluate([run / "best.pt"], overwrite=True)


def test_data_that_moved_is_found_by_an_override(run: Path, data_root: Path) -> None:
    data_root.rename(data_root.with_name("moved"))
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder"):
        evaluate([run / "best.pt"])
    assert evaluate([run / "best.pt"], [f"data.root={data_root.with_name('moved')}"]).exists()


def test_validation_folders_of_their_own_are_enough(data_root: Path) -> None:
    for folder in ("images", "masks"):
        (data_root / "val" / folder).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            (data_root / folder / name).rename(data_root / "val" / folder / name)
    folders = "data.validation={images: val/images, masks: val/masks}"
    run = train(make_config(data_root, folders))
    shutil.rmtree(data_root / "images")
    shutil.rmtree(data_root / "masks")
    evaluate([run / "best.pt"])
    rows = rows_of(run / "evaluation_best/per_image.csv")
    assert [row["stem"] for row in rows] == ["1", "2"]


def test_results_are_not_overwritten_unasked(run: Path) -> None:
    evaluate([run / "best.pt"])
    with pytest.raises(FileExistsError, match=r"report\.html: exists; pass --overwrite"):
        evaluate([run / "best.pt"])
    evaluate([run / "best.pt"], overwrite=True)


def test_masks_of_other_values_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "new", 1)
    mask = tmp_path / "new" / "masks" / "0.png"
    Image.fromarray(np.full((36, 52), 77, np.uint8)).save(mask)
    with pytest.raises(ValueError, match=r"0\.png: got the mask value 77"):
        evaluate([run / "best.pt"], images=f"{tmp_path}/new/images", masks=f"{tmp_path}/new/masks")
    assert not (run / "evaluation_best").exists()


def test_images_need_masks(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got one of --images and --masks"):
        evaluate([run / "best.pt"], images=tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def new(tmp_path: Path) -> dict[str, str]:
    """Five images, of which in the last all is ignored."""
    write_pairs(tmp_path / "new", 5, seed=7)
    Image.fromarray(np.full((36, 52), 7, np.uint8)).save(tmp_path / "new" / "masks" / "4.png")
    return {"images": str(tmp_path / "new" / "images"), "masks": str(tmp_path / "new" / "masks")}


@pytest.fixture
def ignoring(data_root: Path, workdir: Path) -> Path:
    """A checkpoint of a model that ignores the mask value 7."""
    assert workdir == Path.cwd()
    settings = ("train.epochs=4", "train.previews=0", "data.ignore=[7]")
    return train(make_config(data_root, *settings)) / "best.pt"


def test_each_image_has_a_row_and_is_counted_once(
    ignoring: Path, new: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluate([ignoring], **new, out=Path("scores"))
    names = {"metrics.json", "per_image.csv", "confusion.png", "report.html"}
    assert {file.name for file in path.parent.iterdir()} == names
    report, rows = json.loads(path.read_text()), rows_of(path.parent / "per_image.csv")
    assert [row["stem"] for row in rows] == report["images"] == list("01234")
    assert {(row["height"], row["width"]) for row in rows} == {("36", "52")}
    assert np.sum(report["confusion_matrix"]) == 4 * 36 * 52
    pairs = find_pairs(Path(), [new["images"]], new["masks"])[0]
    total, means = np.zeros((2, 2), int), []
    for row, pair in zip(rows, pairs[:4], strict=False):
        matrix = counted_by_hand(ignoring, [pair])
        iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
        assert float(row["iou_box"]) == pytest.approx(iou[1])
        assert float(row["dice_box"]) == pytest.approx(2 * iou[1] / (1 + iou[1]))
        assert float(row["mean_iou"]) == pytest.approx(iou.mean())
        assert float(row["pixel_accuracy"]) == pytest.approx(matrix.trace() / matrix.sum())
        assert float(row["boundary_f1_box"]) >= 0
        total += matrix
        means.append(iou.mean())
    assert report["confusion_matrix"] == total.tolist()
    assert set(rows[4].values()) == {"4", "36", "52", ""}  # no score
    per_image = report["per_image"]
    assert per_image["mean"]["mean_iou"] == pytest.approx(np.mean(means))
    assert per_image["std"]["mean_iou"] == pytest.approx(np.std(means, ddof=1))
    assert per_image["images_without"]["mean_iou"] == 1
    assert report["boundary_distance"] == 2
    assert "within 2 pixels" in report["rules"]["boundary F1"]
    assert "1 image(s) without a pixel that counts" in capsys.readouterr().out


def test_the_worst_image_comes_first_and_the_best_last(ignoring: Path, new: dict[str, str]) -> None:
    path = evaluate([ignoring], **new, out=Path("scores"))
    rows = [row for row in rows_of(path.parent / "per_image.csv") if row["mean_iou"]]
    ranked = sorted(rows, key=lambda row: float(row["mean_iou"]))
    html = (path.parent / "report.html").read_text()
    shown = re.findall(r"<figcaption>(\w+): mean IoU ([\d.]+)<", html)
    assert shown[0] == (ranked[0]["stem"], f"{float(ranked[0]['mean_iou']):.4f}")
    assert shown[-1] == (ranked[-1]["stem"], f"{float(ranked[-1]['mean_iou']):.4f}")
    assert len(shown) == 3
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["Worst", "Median", "Best"]


def test_one_image_is_enough(run: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", 1)
    path = evaluate(
        [run / "best.pt"],
        images=f"{tmp_path}/one/images",
        masks=f"{tmp_path}/one/masks",
        out=Path("scores"),
    )
    report = json.loads(path.read_text())
    assert report["per_image"]["std"]["mean_iou"] is None
    assert report["per_image"]["mean"]["mean_iou"] == pytest.approx(report["mean_iou"])
    assert "Histogram of the mean IoU of 1 images" in path.with_name("report.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_of_files_may_be_any_bytes(run: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", 1)
    for folder in ("images", "masks"):
        (tmp_path / "one" / folder / "0.png").rename(
            tmp_path / "one" / folder / os.fsdecode(b"\xff <b>.png")
        )
    path = evaluate(
        [run / "best.pt"],
        images=f"{tmp_path}/one/images",
        masks=f"{tmp_path}/one/masks",
        out=Path("scores"),
    )
    assert b"\n\xff <b>,36,52," in path.with_name("per_image.csv").read_bytes()
    assert b"<figcaption>\xff &lt;b&gt;: mean IoU" in path.with_name("report.html").read_bytes()


def test_only_ignored_pixels_are_no_error(ignoring: Path, new: dict[str, str]) -> None:
    masks = Path(new["masks"])
    for i in range(4):
        (masks / f"{i}.png").write_bytes((masks / "4.png").read_bytes())
    path = evaluate([ignoring], **new, out=Path("scores"), objects="", threshold=True)
    report = json.loads(path.read_text())
    assert report["mean_iou"] is report["per_image"]["mean"]["pixel_error"] is None
    assert report["threshold"]["best_f1"] is None
    assert report["object_thresholds"]["best"] == {}
    assert "NaN" not in path.read_text()
    assert report["classes_without_a_score"] == ["ground", "box"]


def test_scores_are_those_of_what_predict_writes_with_the_same_augmentation(
    run: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluate([run / "best.pt"], tta=("flips", "scales"))
    assert "the validation split, with flips and scales" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["tta"] == ["flips", "scales"]
    assert "flips, scales" in path.with_name("report.html").read_text()
    pairs = check_data(make_config(data_root)).val_pairs
    matrix = counted_by_hand(run / "best.pt", pairs, ("flips", "scales"))
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["confusion_matrix"] != counted_by_hand(run / "best.pt", pairs).tolist()


def test_every_threshold_is_scored_as_by_hand(
    ignoring: Path, new: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluate([ignoring], **new, out=Path("scores"), threshold=True)
    model = load_model(ignoring)
    probabilities, truths = [], []
    for pair in find_pairs(Path(), [new["images"]], new["masks"])[0][:4]:
        image = torch.from_numpy(to_float(read_image(pair.images[0], 1)))
        probabilities.append(model.logits(image).softmax(0)[1].numpy())
        with Image.open(pair.masks[0]) as mask:
            truths.append(np.asarray(mask) == 200)
    probability, truth = np.array(probabilities), np.array(truths)
    rows = rows_of(path.with_name("thresholds.csv"))
    assert len(rows) == 256
    for row in rows[::15]:
        predicted = probability >= float(row["threshold"])
        hits = (predicted & truth).sum()
        assert int(row["true_positives"]) == hits
        assert int(row["false_positives"]) == (predicted & ~truth).sum()
        assert float(row["recall"]) == pytest.approx(hits / truth.sum())
        assert float(row["precision"] or "nan") == pytest.approx(
            hits / predicted.sum() if predicted.any() else math.nan, nan_ok=True
        )
    best = max(float(row["f1"]) for row in rows)
    report = json.loads(path.read_text())["threshold"]
    assert report["foreground"] == "box"
    assert report["best_f1"] == pytest.approx(best)
    assert f"best F1 {best:.4f} at {report['best_f1_threshold']:.3f}" in capsys.readouterr().out
    # Files of another kind of evaluation do not stay.
    evaluate([ignoring], **new, out=Path("scores"), overwrite=True)
    assert not path.with_name("thresholds.csv").exists()


def test_objects_are_measured_where_asked_for(
    ignoring: Path, new: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(evaluate([ignoring], **new, out=Path("a"), objects="").read_text())
    assert (report["objects"], report["objects_are"]) == ("box", "connected parts")
    mean = report["per_image"]["mean"]
    # All pixels count alike, and the images are of one size.
    assert mean["pixel_error"] == pytest.approx(1 - report["pixel_accuracy"])
    assert (
        0 <= mean["object_average_precision"] <= mean["object_average_precision_at_iou_0.50"] <= 1
    )
    shown = capsys.readouterr().out
    assert "Parts of the class box as objects" in shown
    assert f"{mean['thinned_rand_score']:.4f}" in shown
    named = json.loads(evaluate([ignoring], **new, out=Path("b"), objects="ground").read_text())
    assert named["objects"] == "ground"
    assert "the class ground" in named["rules"]["objects"]
    with pytest.raises(ValueError, match=r"got --instances disc, expected one of .* ground, box"):
        evaluate([ignoring], **new, out=Path("c"), objects="disc")


@pytest.mark.parametrize(("objects", "tta"), [("", ("flips",)), ("ground", ())])
def test_objects_at_thresholds_are_those_of_the_masks_that_predict_writes(
    ignoring: Path,
    new: dict[str, str],
    objects: str,
    tta: tuple[Kind, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiled = ["tiling.size=[32,32]"]
    path = evaluate(
        [ignoring], tiled, **new, out=Path("scores"), objects=objects, threshold=True, tta=tta
    )
    rows = rows_of(path.with_name("object_thresholds.csv"))
    assert [float(row["threshold"]) for row in rows] == [i / 20 for i in range(1, 20)]
    model = load_model(ignoring, overrides=tiled)
    pairs = find_pairs(Path(), [new["images"]], new["masks"])[0]
    class_id = 0 if objects else 1
    for row in rows[::3]:
        options = Options(threshold=float(row["threshold"]), tta=tta)
        measured = []
        for pair in pairs[:4]:  # of the last all is ignored
            ids = predict(model, pair.images[0], options)
            with Image.open(pair.masks[0]) as mask:
                truth = (np.asarray(mask) == 200).astype(int) == class_id
            precisions = average_precision(
                connected_components(ids == class_id), connected_components(truth)
            )
            measured.append(
                [
                    *vars(membrane_scores(ids == class_id, connected_components(truth))).values(),
                    np.mean(precisions),
                    precisions[0],
                ]
            )
        assert [float(row[name] or "nan") for name in OBJECT_MEASURES] == pytest.approx(
            torch.tensor(measured, dtype=torch.float64).nanmean(0).tolist(), nan_ok=True
        )
    best = json.loads(path.read_text())["object_thresholds"]
    assert best["foreground"] == "box"
    for name, one in best["best"].items():
        column = {float(row["threshold"]): float(row[name] or "nan") for row in rows}
        scores = [score for score in column.values() if not math.isnan(score)]
        assert one["score"] == (min if name.endswith("error") else max)(scores)
        assert one["score"] == column[one["threshold"]]
        at_half = one["score_at_half"]
        assert (math.nan if at_half is None else at_half) == pytest.approx(column[0.5], nan_ok=True)
    rand = best["best"]["thinned_rand_score"]
    line = f"{rand['score']:.4f}  {rand['threshold']:.2f}"
    assert line in capsys.readouterr().out
    html = path.with_name("report.html").read_text()
    assert f"<td>{rand['score']:.4f}</td><td>{rand['threshold']:.2f}</td>" in html
    # Neither alone has such a file, and none of an evaluation before stays.
    for alone in ({"objects": objects}, {"threshold": True}):
        evaluate([ignoring], **new, out=Path("scores"), overwrite=True, **alone)
        assert not path.with_name("object_thresholds.csv").exists()
        assert "object_thresholds" not in json.loads(path.read_text())
        assert "Thresholds of objects" not in path.with_name("report.html").read_text()


def test_more_than_two_classes_have_no_threshold_and_name_their_objects(data_root: Path) -> None:
    settings = ("data.classes={ground: 0, box: 200, never: 9}", "train.epochs=1")
    checkpoint = train(make_config(data_root, *settings)) / "best.pt"
    with pytest.raises(ValueError, match=r"got --threshold for a model of 3 classes, expected one"):
        evaluate([checkpoint], threshold=True)
    with pytest.raises(ValueError, match=r"got --threshold for a model of 3 classes, expected one"):
        evaluate([checkpoint], threshold=True, objects="box")
    with pytest.raises(ValueError, match=r"expected the class whose .* as --instances box"):
        evaluate([checkpoint], objects="")
    report = json.loads(evaluate([checkpoint], objects="box").read_text())
    assert report["classes_without_a_score"] == (["never"] if report["iou"][2] is None else [])


def test_without_scipy_boundaries_are_left_out_and_it_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    path = evaluate([run / "best.pt"])
    report = json.loads(path.read_text())
    assert report["boundary_distance"] is None
    assert "boundary_f1" not in report
    assert "needs unet[metrics]" in path.with_name("report.html").read_text()
    assert "boundary F1 and HD95 need unet[metrics]" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^--instances: needs scikit-image; install it"):
        evaluate([run / "best.pt"], overwrite=True, objects="")


@pytest.mark.parametrize("distance", [-1, math.nan, math.inf])
def test_a_distance_is_a_number_of_pixels(run: Path, distance: float) -> None:
    with pytest.raises(ValueError, match=r"got --boundary .*, expected pixels from 0 up"):
        evaluate([run / "best.pt"], boundary_distance=distance)


def test_a_folder_that_cannot_be_written_is_refused_before_work(run: Path) -> None:
    Path("taken").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        evaluate([run / "best.pt"], out=Path("taken/scores"))
    assert Path("taken").read_text() == "mine"


def test_metrics_json_is_there_only_when_all_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = evaluate([run / "best.pt"])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unet.evaluation.results.save_picture", fail)
        with pytest.raises(OSError, match="No space left"):
            evaluate([run / "best.pt"], overwrite=True)
    assert {file.name for file in path.parent.iterdir()} == {"per_image.csv"}
    with pytest.raises(FileExistsError, match=r"per_image\.csv: exists; pass --overwrite"):
        evaluate([run / "best.pt"])


def test_validation_counts_what_evaluation_counts(run: Path, data_root: Path) -> None:
    model = load_model(run / "best.pt")
    pairs = check_data(make_config(data_root)).val_pairs
    report = json.loads(evaluate([run / "best.pt"]).read_text())
    assert confusion_of_pairs(model, pairs, "validate").tolist() == report["confusion_matrix"]


def test_objects_are_those_of_the_label_images_where_the_config_has_them(
    data_root: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instances(data_root)
    best, labelled = [run / "best.pt"], ["data.instances=instances"]
    report = json.loads(evaluate(best, labelled, objects="").read_text())
    assert report["objects_are"] == "label images"
    shown = capsys.readouterr().out
    assert "Parts of the class box against the objects of label images" in shown
    # Each box is two objects, which the network cannot tell apart.
    parts = json.loads(evaluate(best, objects="", overwrite=True).read_text())
    name, expected = "thinned_rand_score", []
    for stem in report["images"]:
        found = predict(load_model(best[0]), data_root / f"images/{stem}.png") == 1
        with Image.open(data_root / f"instances/{stem}.png") as file:
            labels = np.asarray(file)
        expected.append(membrane_scores(found, labels > 0, true_objects=labels).thinned_rand_score)
    assert report["per_image"]["mean"][name] == pytest.approx(np.mean(expected))
    assert report["per_image"]["mean"][name] < parts["per_image"]["mean"][name]
    # Of other images they are named beside the masks.
    new = {"images": f"{data_root}/images", "masks": f"{data_root}/masks"}
    other = json.loads(evaluate(best, labelled, **new, out=Path("o"), objects="").read_text())
    assert other["objects_are"] == "connected parts"
    cells = {"labels": f"{data_root}/instances", "objects": ""}
    other = json.loads(evaluate(best, **new, **cells, out=Path("p")).read_text())
    assert (other["objects_are"], len(other["images"])) == ("label images", 6)
    for wrong in (cells, {**new, "labels": cells["labels"]}):
        with pytest.raises(ValueError, match="got --labels, expected it with --images, whose"):
            evaluate(best, **wrong, out=Path("q"))
    with pytest.raises(ValueError, match=r"png: numbers \d+% of the pixels of ground in .*masks"):
        evaluate(best, labelled, objects="ground", out=Path("q"))
    stem = report["images"][0]
    Image.new("L", (5, 7)).save(data_root / f"instances/{stem}.png")
    with pytest.raises(ValueError, match=rf"{stem}\.png: got a label image of 7 x 5 pixels"):
        evaluate(best, labelled, objects="", overwrite=True)
    (data_root / f"instances/{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"got nothing for .*masks/{stem}\.png"):
        evaluate(best, labelled, objects="", overwrite=True)
    shutil.rmtree(data_root / "instances")
    with pytest.raises(FileNotFoundError, match="instances"):
        evaluate(best, labelled, objects="", overwrite=True)


@pytest.mark.usefixtures("workdir")
def test_scoring_needs_no_label_images(data_root: Path) -> None:
    write_instances(data_root)
    overrides = "data.instances=instances", "loss.border={sigma: 3}", "train.epochs=1"
    run = train(make_config(data_root, *overrides))
    shutil.rmtree(data_root / "instances")
    path = evaluate([run / "best.pt"])
    matrix = json.loads(path.read_text())["confusion_matrix"]
    assert sum(map(sum, matrix)) == 2 * 36 * 52
    assert matrix[1][0] + matrix[1][1] == 2 * 16 * 20  # scored by the masks as they are
