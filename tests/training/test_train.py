import csv
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import PAPER, make_config, states_equal, write_instances, write_pairs
from PIL import Image

import unet.training.train
from unet import load_model, predict
from unet.checkpoint import load_checkpoint
from unet.cli.main import main
from unet.config.loader import load_config
from unet.config.values import config_to_dict
from unet.data.border_weights import border_weights
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def test_a_run_leaves_what_it_promises(data_root: Path) -> None:
    config = make_config(data_root)
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


def test_it_learns(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(make_config(data_root, "train.epochs=25", "train.validate_every=25"))
    row = load_checkpoint(run / "last.pt")["progress"]["history"][-1]
    assert row["mean_iou"] > 0.9
    assert f"next:     unet evaluate {run / 'best.pt'}" in capsys.readouterr().out
    # And the checkpoint alone segments an image that it has never seen, to the mask's values.
    write_pairs(Path("new"), 1, seed=99)
    model = load_model(run / "best.pt")
    ids = predict(model, Path("new/images/0.png"))
    with Image.open("new/masks/0.png") as mask:
        truth = np.asarray(mask) == 200
    assert ((ids == 1) == truth).mean() > 0.95


def test_border_weights_are_computed_once_for_each_image(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instances(data_root)
    computed = []

    def spy(cells: np.ndarray, weight: float, sigma: float) -> np.ndarray:
        computed.append((weight, sigma))
        return border_weights(cells, weight, sigma)

    monkeypatch.setattr("unet.data.reader.border_weights", spy)
    train(make_config(data_root, "data.instances=instances", "loss.border={weight: 7, sigma: 3}"))
    assert computed == [(7, 3)] * 4


def test_the_number_of_workers_changes_nothing(data_root: Path) -> None:
    runs = [
        train(make_config(data_root, f"name=workers{number}", f"train.num_workers={number}"))
        for number in (0, 2)
    ]
    states = [load_checkpoint(run / "last.pt") for run in runs]
    assert states_equal(states[0]["model"], states[1]["model"])


def test_settings_reach_what_they_are_of(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Watched(unet.training.train.TrainingStep):
        def gradients(self, batches: Iterable) -> tuple[float, float]:
            seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
            seen["recompute"] = self._net.activation_checkpointing
            seen["clip"] = self.clip_grad_norm
            weight = self._net.encoder.stem[3].weight
            seen["channels_last"] = weight.is_contiguous(memory_format=torch.channels_last)
            return super().gradients(batches)

    monkeypatch.setattr("unet.training.train.TrainingStep", Watched)
    train(make_config(data_root, "train.epochs=1"))
    assert seen == {"deterministic": False, "recompute": False, "clip": None, "channels_last": True}
    train(make_config(data_root, "name=b", "train={epochs: 1, num_workers: 0, activation_checkpointing: true, "
                      "deterministic: true, clip_grad_norm: 2, channels_last: false}"))  # fmt: skip
    assert seen == {"deterministic": True, "recompute": True, "clip": 2.0, "channels_last": False}
    assert not torch.are_deterministic_algorithms_enabled()


def test_synchronised_batch_norm_needs_cuda(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"sync_batch_norm: torch has it for CUDA only"):
        train(make_config(data_root, "train.sync_batch_norm=true", "train.device=cpu"))


def test_faults_on_both_sides_of_the_split_are_reported_together(data_root: Path) -> None:
    for stem in "0123":
        (data_root / "masks" / f"{stem}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        train(make_config(data_root, "data.validation={stems: ['3', '4']}"))
    assert len(str(caught.value).splitlines()) == 4


def test_wrong_data_leaves_no_run(data_root: Path) -> None:
    (data_root / "masks" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.png: cannot be read"):
        train(make_config(data_root))
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder"):
        train(make_config(data_root / "elsewhere"))
    assert not Path("runs/tiny").exists()


def test_images_of_many_sizes_need_a_crop(data_root: Path) -> None:
    for folder in ("images", "masks"):
        Image.new("L", (40, 50)).save(data_root / folder / "6.png")
        Image.new("L", (50, 40)).save(data_root / folder / "7.png")
    with pytest.raises(ValueError, match=r"augment\.crop: got none, but training images of"):
        train(make_config(data_root, "augment.crop="))
    train(make_config(data_root, "augment.crop=", "train.batch_size=1", "train.epochs=1"))


def test_a_warm_up_of_almost_the_whole_run_trains(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1", "schedule.warmup_epochs=0.9"))


def test_validating_on_the_training_images_is_refused(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"of which data\.images names files too"):
        train(make_config(data_root, "data.validation={images: images, masks: masks}"))


def test_validation_in_folders_of_their_own(data_root: Path) -> None:
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


def test_a_loader_that_is_killed_is_told(
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
    assert re.search(r"^error: DataLoader worker \(pid.*(killed|exited).*lower train\.num", error)
    assert "Traceback" not in error
