import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config
from PIL import Image

from unet.build import build_classes
from unet.checkpoint import load_checkpoint
from unet.evaluation.scoring import PredictedImage
from unet.training.logger import RunLogger, draw_curves
from unet.training.train import train

ROWS = [
    {"epoch": i, "step": 2 * i, "lr": 0.1 / i, "train_loss": 1 / i, "val_loss": 2 / i,
     "mean_iou": 0.1 * i, "iou_ground": 0.1, "iou_box": float("nan"), "seconds": 1.0}
    for i in (1, 2, 3)
]  # fmt: skip


def test_curves_are_drawn_for_a_single_row_and_missing_scores(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = "a class with a name of many letters"
    classes = build_classes(make_config(tmp_path, f"data.classes={{ground: 0, {name}: 200}}"))
    rows = [{key.replace("box", name): row[key] for key in row} for row in ROWS]
    for count in (1, 3):
        draw_curves(tmp_path / "curves.png", rows[:count], "mean_iou", classes)
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.height == 900
            margin = np.asarray(picture.convert("L"))[:, -10:]
            assert (margin == 255).all()  # the legend is not cut off
            colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6) or ()}
    assert set(classes.colours) <= colours  # as in the previews
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # training and validation loss


def test_previews_show_the_same_images_each_time(data_root: Path, tmp_path: Path) -> None:
    config = make_config(data_root)
    tracker = RunLogger(tmp_path, build_classes(config), config.train)
    ids = np.zeros((36, 52), np.uint8)
    tracker.validation(ROWS[:1], [PredictedImage("0", torch.zeros(1, 36, 52), ids, ids)])
    tracker.validation(ROWS[:2], [PredictedImage("0", torch.zeros(1, 36, 52), ids, ids)])
    tracker.close()
    pictures = [(tmp_path / f"previews/epoch_000{i}.png").read_bytes() for i in (1, 2)]
    assert pictures[0] == pictures[1]


@pytest.mark.usefixtures("extras")
def test_tensorboard_holds_scalars_pictures_and_the_config(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    run = train(make_config(data_root, "train.epochs=2", "train.previews=1"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()
    assert {
        "train/loss",
        "train/learning_rate",
        "validation/loss",
        "validation/mean_iou",
        "validation/iou_box",
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/mean_iou")] == [2, 4]
    assert [event.step for event in events.Images("previews")] == [2, 4]
    (config,) = events.Tensors("config/text_summary")
    assert b"widths" in config.tensor_proto.string_val[0]


def test_a_run_does_not_need_the_extras(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unet.training.logger.is_installed", lambda _: None)
    run = train(make_config(data_root, "train.epochs=1", "train.previews=1"))
    names = sorted(path.name for path in run.iterdir())
    assert names == [
        "best.pt", "config.yaml", "last.pt", "metrics.csv", "previews", "previous.pt",
    ]  # fmt: skip


@pytest.mark.usefixtures("extras")
def test_pictures_and_logs_that_cannot_be_written_are_a_warning(
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("previews", "curves.png", "metrics.csv")

    def block(tracker: RunLogger, step: int, *_: float) -> None:
        if step == 1:
            for name in names:
                place = tracker.run / name
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir() if "." in name else place.write_text("in the way")

    monkeypatch.setattr(RunLogger, "step", block)
    run = train(make_config(data_root, "train.epochs=2", "train.previews=1"))
    assert load_checkpoint(run / "last.pt")["progress"]["step"] == 4
    out, shown = capsys.readouterr()
    assert "predict: " in out
    for name in names:  # the last lines do not send people to pictures that are not there
        assert f"runs/tiny/{name}" not in out
        assert shown.count(f"warning: runs/tiny/{name}: cannot be written (") == 1
    # Without any of them, the run resumes.
    shutil.rmtree(run / "tensorboard")
    for name in names:
        shutil.rmtree(run / name) if "." in name else (run / name).unlink()
    train(make_config(data_root, "train.epochs=2", "train.previews=1"), resume=True)


def test_a_logger_that_fails_is_a_warning(
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unet.runtime.optional.is_installed", lambda _: False)
    run = train(make_config(data_root, "train.epochs=1", "train.loggers=[wandb]"))
    assert load_checkpoint(run / "last.pt")["progress"]["step"] == 2
    shown = capsys.readouterr().err
    assert shown.count("train.loggers: needs wandb; install it with") == 1
