from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from helpers import assert_same_run, make_config, values_of
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import unet
from unet.config.loader import load_config
from unet.config.schema import ModelConfig
from unet.inference.info import describe_checkpoint
from unet.inference.predict import predict_files
from unet.inspection.check import check_data
from unet.runtime.signals import Stopped
from unet.training.custom_parts import CustomParts
from unet.training.train import estimate_duration

pytestmark = pytest.mark.usefixtures("workdir")


class Tiny(nn.Sequential):
    """A network that works at half the size of the image, with dropout."""

    output_stride = 2

    def __init__(self, widths: int = 8) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, widths, 4, stride=2, padding=1),
            nn.BatchNorm2d(widths),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.ConvTranspose2d(widths, 2, 2, stride=2),
        )


def squared(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.softmax(1)[:, 1] - (target == 1).float()).square().mean()


def parts() -> dict[str, Any]:
    transform = albumentations.Compose(
        [albumentations.RandomBrightnessContrast(p=1), albumentations.GaussNoise(p=0.5)]
    )
    return {"network": Tiny(), "loss": squared, "transform": transform}


def test_custom_parts_are_trained_named_scored_and_used_to_predict(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=20")
    network = Tiny()
    run = unet.train(config, **parts() | {"network": network})
    saved = load_config(run / "config.yaml")
    assert vars(saved.custom) == {"network": "Tiny", "loss": "squared", "transform": "Compose"}
    assert saved.model == ModelConfig(in_channels=1)

    scores = unet.evaluate(run, network=Tiny())
    assert scores.mean_iou > 0.7  # it learned
    model = unet.load_model(run / "best.pt", network=Tiny())
    image = data_root / "images" / "1.png"
    ids = unet.predict(model, image)
    assert np.array_equal(ids, unet.predict(run, image, network=network))
    probabilities = unet.predict(model, image, probabilities=True)
    assert probabilities.shape == (2, *ids.shape)
    assert np.array_equal(probabilities.argmax(0), ids)
    assert predict_files([run], [str(image)], Path("masks"), network=Tiny())
    assert "Tiny, a network of your own" in describe_checkpoint(run / "best.pt")
    assert unet.export(run, "model.pt2", network=Tiny()) < 1e-4
    # The weights are those of the network: it can be used without unet.
    Tiny().load_state_dict(torch.load(run / "best.pt")["model"])


def test_loading_a_custom_network_without_it_names_it(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unet.train(make_config(data_root, "train.epochs=1"), network=Tiny())
    assert f"evaluate: unet.evaluate({str(run)!r}, network=Tiny(...))" in capsys.readouterr().out
    for use in (unet.load_model, unet.evaluate, lambda path: unet.export(path, "a.pt2")):
        with pytest.raises(ValueError, match=r"with a network of your own, Tiny, .*network=Tiny\("):
            use(run / "best.pt")
    with pytest.raises(ValueError, match="do not fit"):
        unet.load_model(run / "best.pt", network=Tiny(widths=4))
    with pytest.raises(ValueError, match=r"a network of your own, Tiny, .* got network=Conv2d"):
        unet.load_model(run / "best.pt", network=nn.Conv2d(1, 2, 1))
    for given in ({}, {"network": nn.Conv2d(1, 2, 1)}):
        with pytest.raises(ValueError, match=r"^custom.network: got Tiny, .*network=Tiny"):
            unet.train(run / "config.yaml", overwrite=True, **given)
    other = unet.train(make_config(data_root, "train.epochs=1", "name=unet"))
    with pytest.raises(ValueError, match="trained with a U-Net, but got network=Tiny; leave"):
        unet.load_model(other, network=Tiny())
    with pytest.raises(ValueError, match="with the network Tiny, expected UNet"):
        unet.train(make_config(data_root, "name=new", f"train.init_from={run}/best.pt"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_with_custom_parts_equals_an_uninterrupted_one(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    config = make_config(data_root, f"train.num_workers={num_workers}", "train.ema_decay=0.9")
    whole = unet.train(replace(config, name="whole"), **parts())

    config = replace(config, name="parts")
    updates = []

    def stop_after_three(*_: Any) -> None:
        updates.append(1)
        if len(updates) == 3:
            raise Stopped(15)

    with monkeypatch.context() as patched:
        patched.setattr("unet.training.trainer.RunLogger.step", stop_after_three)
        with pytest.raises(Stopped):
            unet.train(config, **parts())
    with pytest.raises(ValueError, match=r"custom.loss was squared and is now None.*loss=squared"):
        unet.train(config, resume=True, **parts() | {"loss": None})
    resumed = unet.train(config, resume=True, **parts())
    assert_same_run(whole, resumed)


def test_settings_that_a_custom_part_replaces_are_named(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, "loss.dice=0.5")
    CustomParts(network=Tiny(), loss=squared).record(config)
    assert capsys.readouterr().out.splitlines() == [
        "note: model.widths: not used, because you pass Tiny",
        "note: loss.dice: not used, because you pass squared",
    ]
    assert CustomParts().record(config) is config
    for setting, given, where in (
        ("optimizer.encoder_lr=0.1", {"network": Tiny()}, "optimizer.encoder_lr"),
        (
            "train.activation_checkpointing=true",
            {"network": Tiny()},
            "train.activation_checkpointing",
        ),
        ("loss.border={classes: [box]}", {"transform": v2.Identity()}, "loss.border"),
    ):
        encoder = "model={in_channels: 1, encoder: resnet18, widths: [4, 4, 4, 4, 4]}"
        with pytest.raises(ValueError, match=rf"^config: {where}: got .* of your own"):
            CustomParts(**given).record(make_config(data_root, encoder, setting))


def test_custom_parts_of_another_type_are_refused(data_root: Path) -> None:
    config = make_config(data_root)
    for name, wrong in (
        ("network", Tiny),
        ("network", "resnet"),
        ("loss", nn.CrossEntropyLoss),
        ("loss", "dice"),
        ("transform", [v2.Identity()]),
    ):
        with pytest.raises(TypeError, match=f"^{name}: got .*expected"):
            unet.train(config, **{name: wrong})
    assert not Path("runs").exists()


def test_a_crop_of_the_transform_needs_no_crop_of_the_config(data_root: Path) -> None:
    for name in ("images/1.png", "images/2.png", "masks/1.png", "masks/2.png"):
        Image.fromarray(values_of(data_root / name)[:30]).save(data_root / name)
    config = make_config(data_root, "augment.crop=null", "train.epochs=1", "train.batch_size=4")
    with pytest.raises(ValueError, match=r"^augment.crop: got null for training images of 2 sizes"):
        unet.train(config)
    unet.train(config, transform=v2.RandomCrop(16))
    with pytest.raises(ValueError, match=r"^augment.crop: got null for samples of .* pixels"):
        unet.train(config, transform=v2.Identity(), overwrite=True)


def test_the_time_of_a_training_with_own_parts_is_not_that_of_a_unet(data_root: Path) -> None:
    config = CustomParts(network=Tiny()).record(make_config(data_root))
    text = estimate_duration(config, check_data(config))
    assert text == "the time of a training is not known: Tiny is only given in Python"
