import csv
import itertools
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config, write_instances, write_pairs
from PIL import Image

import unet
from unet import export, load_model, predict
from unet.data.image_file import ImageFile
from unet.data.image_io import read_image, to_float
from unet.data.image_types import Pixels
from unet.data.label_images import connected_components
from unet.data.pairing import find_pairs
from unet.evaluation.evaluate import evaluate
from unet.evaluation.measure import OBJECT_MEASURES
from unet.evaluation.results import UnwrittenError
from unet.evaluation.scoring import score_pairs
from unet.inference.tta import TtaMode
from unet.inspection.check import check_data
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import membrane_scores
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


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def metrics_of(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "metrics.json").read_text())


@pytest.fixture
def new(tmp_path: Path) -> dict[str, str]:
    """Five images; the mask of the last one is ignored."""
    write_pairs(tmp_path / "new", 5, seed=7)
    Image.fromarray(np.full((36, 52), 7, np.uint8)).save(tmp_path / "new" / "masks" / "4.png")
    return {"images": str(tmp_path / "new" / "images"), "masks": str(tmp_path / "new" / "masks")}


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the data of the run, which tests may change."""
    return Path(shutil.copytree(trained / "data", tmp_path / "copied"))


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


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been decoded, by its name in its folder."""
    counts: Counter[str] = Counter()
    read = ImageFile.read

    def count(file: ImageFile, *args: Any) -> Pixels:
        counts["/".join(file.path.parts[-2:])] += 1
        return read(file, *args)

    monkeypatch.setattr(ImageFile, "read", count)
    return counts


def test_every_file_is_decoded_once(
    best: Path, copied: Path, new: dict[str, str], decoded: Counter[str]
) -> None:
    evaluate(best, **new, out="scores")
    expected = {f"{folder}/{i}.png": 1 for folder in ("images", "masks") for i in range(5)}
    assert decoded == expected

    decoded.clear()
    write_instances(copied)
    settings = {"data.root": copied, "data.instances": "instances"}
    summary = evaluate(best, objects=True, out="objects", overrides=settings)
    folders = ("images", "masks", "instances")
    assert decoded == {f"{folder}/{s}.png": 1 for folder in folders for s in summary.stems}


def test_images_that_are_not_kept_are_decoded_again_for_the_same_report(
    best: Path, new: dict[str, str], decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(best, **new, out="kept")
    monkeypatch.setattr("unet.evaluation.evaluate._MOST_KEPT", 0)
    decoded.clear()
    evaluate(best, **new, out="again")
    reports = [Path(folder, "report.html").read_text() for folder in ("kept", "again")]
    assert reports[0] == reports[1]
    assert decoded["images/0.png"] == 2


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


def test_every_threshold_is_scored(best: Path, new: dict[str, str]) -> None:
    evaluate(best, **new, thresholds=True, out="scores")
    model = load_model(best)
    probabilities, truths = [], []
    for pair in find_pairs(Path(), [new["images"]], new["masks"])[0][:4]:
        image = torch.from_numpy(to_float(read_image(pair.images[0], 1)))
        probabilities.append(model.logits(image).softmax(0)[1].numpy())
        with Image.open(pair.masks[0]) as mask:
            truths.append(np.asarray(mask) == 200)
    probability, truth = np.array(probabilities), np.array(truths)
    rows = rows_of(Path("scores/thresholds.csv"))
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
    highest = max(float(row["f1"]) for row in rows)
    report = metrics_of("scores")["threshold"]
    assert report["foreground"] == "box"
    assert report["best_f1"] == pytest.approx(highest)
    # An evaluation with other options removes this file.
    evaluate(best, **new, out="scores", overwrite=True)
    assert not Path("scores/thresholds.csv").exists()


def test_objects_are_measured_if_asked_for(best: Path, new: dict[str, str]) -> None:
    evaluate(best, **new, objects=True, out="scores")
    report = metrics_of("scores")
    assert (report["objects"], report["objects_are"]) == ("box", "connected components")
    mean = report["per_image"]["mean"]
    # All images have the same size, so that the mean over them is that over all pixels.
    assert mean["pixel_error"] == pytest.approx(1 - report["pixel_accuracy"])
    assert (
        0 <= mean["object_average_precision"] <= mean["object_average_precision_at_iou_0.50"] <= 1
    )
    named = evaluate(best, **new, objects="ground")
    assert named.measures.objects == 0
    with pytest.raises(
        ValueError,
        match=r"got the class boxx for objects=CLASS, .* ground, box; did you mean box\?",
    ):
        evaluate(best, **new, objects="boxx")


@pytest.mark.parametrize(("objects", "tta"), [(True, ("flips",)), ("ground", ())])
def test_objects_at_thresholds_are_those_of_masks_predicted_with_them(
    best: Path, new: dict[str, str], objects: str | bool, tta: tuple[TtaMode, ...]
) -> None:
    tiled = ["tiling.size=[32,32]"]
    options = {**new, "objects": objects, "thresholds": True, "tta": tta}
    evaluate(best, **options, overrides=tiled, out="scores")
    rows = rows_of(Path("scores/object_thresholds.csv"))
    assert [float(row["threshold"]) for row in rows] == [i / 20 for i in range(1, 20)]
    model = load_model(best, overrides=tiled)
    pairs = find_pairs(Path(), [new["images"]], new["masks"])[0]
    class_id = 0 if objects == "ground" else 1
    for row in rows[::3]:
        threshold = float(row["threshold"])
        measured = []
        for pair in pairs[:4]:  # the last one is ignored
            mask = predict(model, pair.images[0], threshold=threshold, tta=tta) == class_id
            with Image.open(pair.masks[0]) as file:
                truth = (np.asarray(file) == 200).astype(int) == class_id
            objects_found, true_objects = map(connected_components, (mask, truth))
            precisions = average_precision(objects_found, true_objects)
            scores = membrane_scores(mask, true_objects).values()
            measured.append([*scores, np.mean(precisions), precisions[0]])
        assert [float(row[name] or "nan") for name in OBJECT_MEASURES] == pytest.approx(
            torch.tensor(measured, dtype=torch.float64).nanmean(0).tolist(), nan_ok=True
        )
    best_ones = metrics_of("scores")["object_thresholds"]
    assert best_ones["foreground"] == "box"
    for name, one in best_ones["best"].items():
        column = {float(row["threshold"]): float(row[name] or "nan") for row in rows}
        scores = [score for score in column.values() if not math.isnan(score)]
        assert one["score"] == (min if name.endswith("error") else max)(scores)
        assert one["score"] == column[one["threshold"]]
        at_half = one["score_at_half"]
        assert (math.nan if at_half is None else at_half) == pytest.approx(column[0.5], nan_ok=True)
    rand = best_ones["best"]["thinned_rand_score"]
    html = Path("scores/report.html").read_text()
    assert f"<td>{rand['score']:.4f}</td><td>{rand['threshold']:.2f}</td>" in html


def test_objects_at_thresholds_need_both_options(best: Path, evaluated: Path) -> None:
    shutil.copytree(evaluated, "scores")
    Path("scores/object_thresholds.csv").write_text("of an evaluation before")
    for options in ({"objects": True}, {"thresholds": True}):
        evaluate(best, **options, out="scores", overwrite=True)
        assert not Path("scores/object_thresholds.csv").exists()
        assert "object_thresholds" not in metrics_of("scores")
        assert "Thresholds of objects" not in Path("scores/report.html").read_text()


def test_more_than_two_classes_have_no_thresholds_and_name_their_objects(data_root: Path) -> None:
    settings = ("data.classes={ground: 0, box: 200, never: 9}", "train.epochs=1")
    checkpoint = train(make_config(data_root, *settings)) / "best.pt"
    for objects in (False, "box"):
        with pytest.raises(
            ValueError, match="thresholds=True for a model of 3 classes, expected a model of two"
        ):
            evaluate(checkpoint, thresholds=True, objects=objects)
    with pytest.raises(
        ValueError, match=r"objects=True for a model of 3 .* such as box: objects=CLASS"
    ):
        evaluate(checkpoint, objects=True)
    scores = evaluate(checkpoint, objects="box")
    assert scores.absent == (["never"] if math.isnan(scores["iou"][2]) else [])


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


def test_validation_counts_the_same_pixels_and_returns_the_images_it_is_asked_for(
    best: Path, evaluated: Path, trained: Path
) -> None:
    model, pairs = load_model(best), check_data(make_config(trained / "data")).val_pairs
    matrix, kept, none = score_pairs(model, pairs, "validate", keep=[1, 0])
    assert math.isnan(none)
    assert matrix.tolist() == metrics_of(evaluated)["confusion_matrix"]
    for pair, one in zip((pairs[1], pairs[0]), kept, strict=True):
        assert np.array_equal(one.image.numpy(), to_float(read_image(pair.images[0], 1)))
        assert np.array_equal(one.prediction, predict(model, pair.images[0]))
        with Image.open(pair.masks[0]) as mask:
            assert np.array_equal(one.target == 1, np.asarray(mask) == 200)
    assert score_pairs(model, pairs, "validate")[1] == []


def test_images_of_one_size_in_a_row_are_validated_together(
    best: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(data_root / "more", 6, seed=3)
    for name in ("images", "masks"):
        path = data_root / "more" / name / "3.png"
        with Image.open(path) as image:
            image.crop((0, 0, 20, 30)).save(path)
    pairs = find_pairs(data_root / "more", ["images"], "masks")[0]
    model = load_model(best)
    shapes = []
    model.net.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    matrix = score_pairs(model, pairs, "validate")[0]
    assert shapes == [(3, 1, 36, 52), (1, 1, 30, 20), (2, 1, 36, 52)]
    monkeypatch.setattr("unet.inference.predictor._CPU_BATCH_PIXELS", 0)
    assert torch.equal(matrix, score_pairs(model, pairs, "validate")[0])
    assert len(shapes) == 3 + 6


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


def test_label_images_of_the_config_number_the_objects_of_the_validation_split(
    best: Path, copied: Path
) -> None:
    write_instances(copied)
    overrides = [f"data.root={copied}"]
    more = [*overrides, "data.instances=instances"]
    labelled = evaluate(best, objects=True, overrides=more)
    assert labelled.measures.labelled
    components = evaluate(best, objects=True, overrides=overrides)
    # Each box is two objects, which the network cannot tell apart.
    name, expected = "thinned_rand_score", []
    for stem in labelled.stems:
        found = predict(load_model(best), copied / f"images/{stem}.png") == 1
        with Image.open(copied / f"instances/{stem}.png") as file:
            labels = np.asarray(file)
        expected.append(
            membrane_scores(found, labels > 0, true_objects=labels)["thinned_rand_score"]
        )
    assert labelled.over_images(name)[0] == pytest.approx(np.mean(expected))
    assert labelled.over_images(name)[0] < components.over_images(name)[0]


def test_label_images_of_other_images_are_an_option(best: Path, copied: Path) -> None:
    write_instances(copied)
    new = {"images": f"{copied}/images", "masks": f"{copied}/masks"}
    # The label images of the config belong to the validation split.
    overrides = [f"data.root={copied}", "data.instances=instances"]
    scores = evaluate(best, **new, objects=True, overrides=overrides)
    assert not scores.measures.labelled
    evaluate(best, **new, label_images=f"{copied}/instances", objects=True, out="scores")
    report = metrics_of("scores")
    assert (report["objects_are"], len(report["images"])) == ("label images", 6)


def test_label_images_that_do_not_fit_are_an_error(best: Path, copied: Path) -> None:
    write_instances(copied)
    overrides = [f"data.root={copied}", "data.instances=instances"]
    with pytest.raises(ValueError, match=r"png: numbers \d+% of the pixels of ground in .*masks"):
        evaluate(best, objects="ground", overrides=overrides)
    stem = load_model(best).val_stems[0]
    Image.new("L", (5, 7)).save(copied / f"instances/{stem}.png")
    with pytest.raises(ValueError, match=rf"{stem}\.png: got a label image of 7 x 5 pixels"):
        evaluate(best, objects=True, overrides=overrides)
    (copied / f"instances/{stem}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no file of the same stem for .*masks/{stem}\.png"
    ):
        evaluate(best, objects=True, overrides=overrides)
    shutil.rmtree(copied / "instances")
    with pytest.raises(FileNotFoundError, match="instances"):
        evaluate(best, objects=True, overrides=overrides)


def test_scores_without_objects_need_no_label_images(data_root: Path) -> None:
    write_instances(data_root)
    overrides = "data.instances=instances", "loss.border={sigma: 3}", "train.epochs=1"
    run = train(make_config(data_root, *overrides))
    shutil.rmtree(data_root / "instances")
    matrix = evaluate(run / "best.pt").matrix
    assert matrix.sum() == 2 * 36 * 52
    assert matrix[1].sum() == 2 * 16 * 20  # the masks as they are


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
