import csv
import math
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import PAPER, make_config, states_equal, write_pairs
from PIL import Image

import unet.training.train
import unet.training.trainer
from unet import load_model, predict
from unet.build import build_loss, build_network, build_reader
from unet.checkpoint import load_checkpoint
from unet.cli.main import main
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.config.values import config_to_dict
from unet.data.image_io import to_float
from unet.data.sampler import SeededBatchSampler
from unet.inference.info import describe_checkpoint
from unet.inspection.check import check_data
from unet.models.unet import UNet
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.mark.usefixtures("extras")
def test_a_run_writes_its_files(data_root: Path) -> None:
    config = make_config(data_root, "train.previews=2")
    assert train(config) == Path("runs/tiny")
    files = sorted(str(path.relative_to("runs/tiny")) for path in Path("runs/tiny").rglob("*.*"))
    assert [path for path in files if not path.startswith("tensorboard")] == [
        "best.pt",
        "config.yaml",
        "curves.png",
        "last.pt",
        "metrics.csv",
        "previews/epoch_0001.png",
        "previews/epoch_0002.png",
        "previews/epoch_0003.png",
        "previous.pt",
    ]
    assert load_config(Path("runs/tiny/config.yaml")) == config
    with Path("runs/tiny/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # Of the epoch's last update: cos(pi / 2 * 5 / 6) squared.
    assert float(rows[-1]["lr"]) == pytest.approx(0.01 * 0.0669873)
    assert 0 <= float(rows[-1]["iou_box"]) <= 1
    with Image.open("runs/tiny/previews/epoch_0003.png") as picture:
        assert picture.size[0] > 3 * 256


@pytest.mark.parametrize("crop", ["[36, 44]", "null"])
def test_an_unpadded_network_learns(data_root: Path, crop: str) -> None:
    overrides = [*PAPER, "model.dropout=0.1", f"augment.crop={crop}", "optimizer.lr=0.005"]
    run = train(make_config(data_root, *overrides, "train.epochs=40", "train.validate_every=40"))
    row = load_checkpoint(run / "last.pt")["progress"]["history"][-1]
    assert row["mean_iou"] > 0.9
    write_pairs(Path("new"), 1, seed=99)
    ids = predict(load_model(run / "best.pt"), Path("new/images/0.png"))
    with Image.open("new/masks/0.png") as mask:
        truth = np.asarray(mask) == 200
    assert ((ids == 1) == truth).mean() > 0.95


def test_a_network_learns(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(make_config(data_root, "train.epochs=25", "train.validate_every=25"))
    row = load_checkpoint(run / "last.pt")["progress"]["history"][-1]
    assert row["mean_iou"] > 0.9
    assert f"evaluate: unet evaluate {run / 'best.pt'}" in capsys.readouterr().out
    # And the checkpoint alone segments an image that it has never seen, to the mask's values.
    write_pairs(Path("new"), 1, seed=99)
    model = load_model(run / "best.pt")
    ids = predict(model, Path("new/images/0.png"))
    with Image.open("new/masks/0.png") as mask:
        truth = np.asarray(mask) == 200
    assert ((ids == 1) == truth).mean() > 0.95


def test_the_number_of_workers_changes_nothing(data_root: Path) -> None:
    runs = [
        train(make_config(data_root, f"name=workers{number}", f"train.num_workers={number}"))
        for number in (0, 2)
    ]
    states = [load_checkpoint(run / "last.pt") for run in runs]
    assert states_equal(states[0]["model"], states[1]["model"])


def test_a_warm_up_may_last_almost_the_whole_run(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1", "schedule.warmup_epochs=0.9"))


def test_validation_images_may_be_in_separate_folders(data_root: Path) -> None:
    write_pairs(data_root / "held_out", 2, seed=5)
    validation = "data.validation={images: held_out/images, masks: held_out/masks}"
    run = train(make_config(data_root, validation, "train.epochs=1"))
    assert load_checkpoint(run / "last.pt")["progress"]["history"][-1]["epoch"] == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_optimizers_and_precisions_train(data_root: Path, optimizer: str, precision: str) -> None:
    overrides = [
        "train.epochs=2",
        f"optimizer={{name: {optimizer}, lr: 0.01}}",
        f"train.precision={precision}",
        "schedule={name: polynomial, power: 0.9}",
    ]
    history = load_checkpoint(train(make_config(data_root, *overrides)) / "last.pt")["progress"][
        "history"
    ]
    losses = [row["train_loss"] for row in history]
    assert losses[1] < losses[0]


def test_a_killed_worker_is_reported(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = os.getpid()

    def die(*_: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("unet.data.cache.DecodedCache.__getitem__", die)
    settings = config_to_dict(make_config(data_root, "train.num_workers=1"))
    Path("tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert main(["train", "tiny.yaml"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"(^|\r)error: DataLoader worker \(pid.*(killed|exited).*lower train\.num", error
    )
    assert "Traceback" not in error


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(data_root: Path) -> None:
    overrides = ["optimizer={name: sgd, lr: 100}", "model.norm=none", "train.save_every_steps=1"]
    with pytest.raises(FloatingPointError) as caught:
        train(make_config(data_root, *overrides))
    found = re.fullmatch(
        r"train: (the loss|a gradient) is (nan|-?inf) in step (\d+), with a learning rate of \S+, "
        r"on the samples (\d(?:, \d)*); this step did not change the weights, and "
        r"runs/tiny/last\.pt is intact\. Lower optimizer\.lr.*",
        str(caught.value),
    )
    assert found is not None, caught.value
    step = int(found[3])
    state = load_checkpoint(Path("runs/tiny/last.pt"))
    assert state["progress"]["step"] == step - 1
    assert all(weights.isfinite().all() for weights in state["model"].values())
    # The samples are those of the step.
    stems = state["identity"]["train_stems"]
    places = SeededBatchSampler(len(stems), 2, 0, 0, 9).batch(step - 1)
    assert found[4] == ", ".join(dict.fromkeys(stems[index] for _, index in places))


def test_steps_that_float16_skips_are_counted(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    run = train(make_config(data_root, "train.precision=float16", "train.epochs=20"))
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    skipped = [row["skipped_steps"] for row in history]
    assert skipped[0] == 2
    assert 2 < skipped[-1] < 35
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    shown = capsys.readouterr().out
    assert f"float16 skipped {skipped[-1]} of 40 steps" in shown
    assert "  2 steps skipped" in shown


def test_float16_does_not_skip_forever(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config, device: torch.device, _: None) -> UNet:
        net = build_network(config, device)
        net.head.weight.register_hook(lambda gradient: gradient * math.inf)
        return net

    monkeypatch.setattr("unet.training.train.build_network", broken)
    monkeypatch.setattr("unet.training.step._SMALLEST_SCALE", 2.0**10)
    with pytest.raises(FloatingPointError, match=r"a gradient is (nan|inf) in step 8"):
        train(make_config(data_root, "train.precision=float16", "train.epochs=20"))


def test_a_run_ends_when_the_score_no_longer_improves(
    data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.2])
    real = unet.training.trainer.scores
    monkeypatch.setattr(
        "unet.training.trainer.scores", lambda matrix: replace(real(matrix), mean_iou=next(scores))
    )
    config = make_config(data_root, "train.epochs=9", "train.patience=2")
    run = train(config)
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    assert [row["mean_iou"] for row in history] == [0.1, 0.3, 0.2, 0.3]
    assert "ended after epoch 4 because of train.patience" in capsys.readouterr().out
    train(config, resume=True)
    assert "the run is complete: there is nothing left to train" in capsys.readouterr().out


def test_an_epoch_may_have_a_number_of_steps(data_root: Path) -> None:
    config = make_config(data_root, "train.steps_per_epoch=5", "train.epochs=2")
    history = load_checkpoint(train(config) / "last.pt")["progress"]["history"]
    assert [(row["epoch"], row["step"]) for row in history] == [(1, 5), (2, 10)]


def test_gradients_of_several_batches_are_those_of_one(data_root: Path) -> None:
    same = ["model.norm=none", "loss.dice=0", "train.epochs=4", "optimizer={name: sgd, lr: 0.01}"]
    one = train(make_config(data_root, "name=one", "train.batch_size=4", *same))
    two = train(make_config(data_root, "name=two", "train.accumulate=2", *same))
    a, b = (load_checkpoint(run / "last.pt")["model"] for run in (one, two))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_averaged_weights_are_scored_and_saved_next_to_the_raw_ones(data_root: Path) -> None:
    settings = "train.ema_decay=0.6", "train.score_raw_weights=true"
    run = train(make_config(data_root, *settings))
    raw = train(make_config(data_root, "name=raw"))
    state, other = (load_checkpoint(one / "last.pt") for one in (run, raw))
    assert states_equal(state["raw_model"], other["model"])
    assert not states_equal(state["model"], other["model"])
    assert "raw_model" in load_checkpoint(run / "best.pt")
    rows, raw_rows = (one["progress"]["history"] for one in (state, other))
    assert [row["raw_mean_iou"] for row in rows] == [row["mean_iou"] for row in raw_rows]
    assert [row["mean_iou"] for row in rows] != [row["mean_iou"] for row in raw_rows]
    head = load_model(run / "last.pt").net.head.weight
    assert torch.equal(head, state["model"]["head.weight"])
    assert not torch.equal(head, state["raw_model"]["head.weight"])


def test_raw_weights_are_scored_only_on_request(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    real = unet.training.trainer.score_pairs

    def count(*arguments: object) -> object:
        scored.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr("unet.training.trainer.score_pairs", count)
    run = train(make_config(data_root, "train.ema_decay=0.6", "train.epochs=2"))
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    assert len(scored) == len(history) == 2
    assert not [name for row in history for name in row if name.startswith("raw_")]
    assert "raw_" not in (run / "metrics.csv").read_text()


def test_the_monitored_score_decides_which_weights_are_best(
    data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used for best.pt, patience and plateau, and in all that is printed."""
    dice = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.2])
    real = unet.training.trainer.scores
    monkeypatch.setattr(
        "unet.training.trainer.scores",
        lambda matrix: replace(real(matrix), dice=[0.9, next(dice)], mean_iou=0.7),
    )
    overrides = ["train.monitor=dice_box", "train.patience=4", "train.epochs=9"]
    plateau = "schedule={name: plateau, patience: 1, factor: 0.5}"
    run = train(make_config(data_root, *overrides, plateau))
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in history] == [0.01, 0.01, 0.01, 0.01, 0.005, 0.005]
    assert load_checkpoint(run / "best.pt")["progress"]["step"] == history[1]["step"]
    shown = capsys.readouterr().out
    assert re.search(r"epoch 2/9  00:0\d, 00:\d\d left  loss ", shown)
    assert "mean IoU 0.7000  Dice of box 0.5000  pixel accuracy" in shown
    assert "best Dice of box 0.5000 in epoch 2;" in shown
    assert "best: epoch 2 of 9" in describe_checkpoint(run / "best.pt")


def test_a_run_prints_its_classes(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_config(data_root, "train.epochs=1"))
    assert "\nclasses: 0 ground, 1 box\n" in capsys.readouterr().out


def test_the_loss_of_the_validation_images_is_the_training_loss_of_each_alone(
    data_root: Path,
) -> None:
    overrides = ["loss.class_weights=[1, 3]", "train.epochs=1", "loss.dice=0.5"]
    config = make_config(data_root, *overrides)
    run = train(config)
    (row,) = load_checkpoint(run / "last.pt")["progress"]["history"]
    model, losses = load_model(run / "last.pt"), []
    for pair in check_data(config).val_pairs:
        image, ids, *_ = build_reader(config)(pair)
        logits = model.logits(torch.from_numpy(to_float(image)))[None]
        target = torch.from_numpy(ids).long()[None]
        losses.append(build_loss(config, np.ones(2))(logits, target).item())
    assert len(losses) > 1
    assert row["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
