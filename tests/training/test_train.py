import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import make_config, states_equal, write_instances
from PIL import Image

import unet.training.train
import unet.training.trainer
from unet.checkpoint import load_checkpoint
from unet.config.loader import load_config
from unet.config.values import config_to_dict
from unet.data.border_weights import border_weights
from unet.training.series import train_series
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def test_settings_reach_the_training_step(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Watched(unet.training.train.TrainingStep):
        def gradients(self, batches: Iterable) -> tuple[float, float]:
            seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
            seen["recompute"] = self.net.activation_checkpointing
            seen["clip"] = self.clip_grad_norm
            weight = self.net.encoder.stem[3].weight
            seen["channels_last"] = weight.is_contiguous(memory_format=torch.channels_last)
            return super().gradients(batches)

    monkeypatch.setattr("unet.training.train.TrainingStep", Watched)
    train(make_config(data_root, "train.epochs=1"))
    assert seen == {"deterministic": False, "recompute": False, "clip": None, "channels_last": True}
    train(make_config(data_root, "name=b", "train={epochs: 1, num_workers: 0, "
                      "activation_checkpointing: true, deterministic: true, clip_grad_norm: 2, "
                      "channels_last: false}"))  # fmt: skip
    assert seen == {"deterministic": True, "recompute": True, "clip": 2.0, "channels_last": False}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_config_may_be_the_path_of_its_file(data_root: Path) -> None:
    settings = config_to_dict(make_config(data_root, "train.epochs=1"))
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    for given in ("mine.yaml", Path("mine.yaml"), settings):
        assert (train(given, overwrite=True) / "best.pt").exists()
    for other in (None, [settings], 5):
        with pytest.raises(TypeError, match=r"^config: got \w+, expected a Config, the path of"):
            train(other)


def test_synchronised_batch_norm_needs_cuda(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"sync_batch_norm: needs CUDA, but the device is cpu"):
        train(make_config(data_root, "train.sync_batch_norm=true", "train.device=cpu"))


def test_errors_in_training_and_validation_files_are_reported_together(data_root: Path) -> None:
    for stem in "0123":
        (data_root / "masks" / f"{stem}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        train(make_config(data_root, "data.validation={stems: ['3', '4']}"))
    assert str(caught.value).startswith("4 files, such as ")


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
    with pytest.raises(ValueError, match=r"augment\.crop: got null for training images of"):
        train(make_config(data_root, "augment.crop="))
    train(make_config(data_root, "augment.crop=", "train.batch_size=1", "train.epochs=1"))


def test_validating_on_the_training_images_is_refused(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"which contains files of data\.images"):
        train(make_config(data_root, "data.validation={images: images, masks: masks}"))


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


def test_a_monitored_class_must_be_in_the_validation_masks(data_root: Path) -> None:
    classes = "data.classes={ground: 0, box: 200, sky: 7}"
    with pytest.raises(
        ValueError, match=r"train\.monitor: got iou_sky, but no validation mask has"
    ):
        train(make_config(data_root, classes, "train.monitor=iou_sky"))
    train(make_config(data_root, classes, "train.monitor=iou_box", "train.epochs=1"))


@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.usefixtures("extras")
def test_without_validation_all_pairs_are_trained_on_and_the_last_model_is_kept(
    data_root: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    for path in [*data_root.glob("*/*.png")]:
        if int(path.stem) >= number:
            path.unlink()
    config = make_config(data_root, "data.validation=none", "train.epochs=2", "train.seeds=1")
    run = train(config)
    shown = capsys.readouterr().out
    assert f"{number} training and 0 validation images" in shown
    assert "trained on all pairs without validation, so best.pt is the last model" in shown
    best, last = (torch.load(run / name, weights_only=False) for name in ("best.pt", "last.pt"))
    assert best["progress"]["step"] == best["progress"]["history"][-1]["step"]
    assert all(torch.equal(best["model"][name], last["model"][name]) for name in best["model"])
    assert (run / "curves.png").exists()
    assert config_to_dict(load_config(run / "config.yaml")) == config_to_dict(config)
    train(config, resume=True)
    assert "nothing left to train" in capsys.readouterr().out
    train_series(make_config(data_root, "data.validation=none", "train.epochs=1", "train.seeds=2"))


def test_what_needs_scores_is_refused_without_validation(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"got 3, expected null with data\.validation none"):
        make_config(data_root, "data.validation=none", "train.patience=3")
    with pytest.raises(ValueError, match=r"got none, fraction, expected one of"):
        make_config(data_root, "data.validation={none: true, fraction: 0.2}")


SPAWN = """
import multiprocessing
from unet import train

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    train("spawned.yaml")
"""


def test_workers_that_are_spawned_train_as_without_workers(data_root: Path) -> None:
    # Takes 15 seconds: as on Windows and macOS, each worker imports torch.
    config = make_config(data_root, "name=spawned", "train.epochs=1", "train.num_workers=1")
    Path("spawned.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    Path("script.py").write_text(SPAWN)
    result = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    alone = train(make_config(data_root, "train.epochs=1"))
    states = [load_checkpoint(run / "last.pt") for run in (alone, Path("runs/spawned"))]
    assert states_equal(states[0]["model"], states[1]["model"])
