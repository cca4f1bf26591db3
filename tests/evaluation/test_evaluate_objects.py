import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config, metrics_of, rows_of, write_instances
from PIL import Image

from unet import load_model, predict
from unet.data.image_io import read_image, to_float
from unet.data.label_images import connected_components
from unet.data.pairing import find_pairs
from unet.evaluation.evaluate import evaluate
from unet.evaluation.measure import OBJECT_MEASURES
from unet.inference.tta import TtaMode
from unet.metrics.instances import average_precision
from unet.metrics.isbi2012 import membrane_scores
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


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
            ValueError,
            match="thresholds=True for a model of 3 classes, but the thresholds are those",
        ):
            evaluate(checkpoint, thresholds=True, objects=objects)
    with pytest.raises(
        ValueError, match=r"the model has 3 classes; .* objects=CLASS: one of box, never"
    ):
        evaluate(checkpoint, objects=True)
    scores = evaluate(checkpoint, objects="box")
    assert scores.absent == (["never"] if math.isnan(scores["iou"][2]) else [])


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
