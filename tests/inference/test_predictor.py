import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config, make_model, states_equal
from torch import nn

from unet import load_model
from unet.build import build_network
from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.data.normalization import Normalization
from unet.inference.predictor import Ensemble, Predictor
from unet.inference.sliding_window import Tiles
from unet.models.receptive_field import unet_geometry


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    torch.manual_seed(0)
    save_checkpoint(path, make_model(tmp_path).contents() | {"history": []})
    return path


def rewrite(path: Path, **changes: Any) -> None:
    torch.save({**load_checkpoint(path), **changes}, path)


def test_a_model_is_loaded_from_its_checkpoint_alone(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    assert model.classes.names == ("ground", "box")
    assert model.normalization.to_dict() == Normalization(mean=(0.4,), std=(0.2,)).to_dict()
    assert not model.net.training
    logits = model.logits(torch.randn(1, 21, 33))
    assert logits.shape == (2, 21, 33)
    assert torch.equal(load_model(checkpoint).logits(torch.zeros(1, 9, 9)), model.logits(
        torch.zeros(1, 9, 9)
    ))  # fmt: skip


def test_a_loaded_model_equals_the_saved_one_with_batch_norm_fused(tmp_path: Path) -> None:
    model, image = make_model(tmp_path), torch.rand(1, 21, 33)
    for _ in range(5):  # batch norm statistics that are not 0 and 1
        model.net(1 + torch.randn(2, 1, 16, 16))
    save_checkpoint(tmp_path / "best.pt", model.contents())
    loaded = load_model(tmp_path / "best.pt")
    assert not any(isinstance(part, nn.BatchNorm2d) for part in loaded.net.modules())
    torch.testing.assert_close(loaded.logits(image), model.logits(image), rtol=1e-5, atol=1e-5)


def test_large_images_in_tiles_equal_whole_images(checkpoint: Path) -> None:
    image = 0.4 + 0.2 * torch.randn(1, 151, 119)
    whole = load_model(checkpoint).logits(image)
    for overrides in (["tiling.size=[64, 40]"], ["tiling={size: [64, 40], batch_size: 3}"]):
        tiled = load_model(checkpoint, overrides=overrides).logits(image)
        torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)
        assert not torch.equal(tiled, whole)  # there were tiles
    # With less overlap than the receptive field, the result is approximate.
    less = load_model(checkpoint, overrides=["tiling={size: [64, 40], overlap: 4}"]).logits(image)
    assert float((less - whole).abs().max()) > 1e-3
    assert ((less - whole).abs() < 0.05).float().mean() > 0.9


@pytest.mark.parametrize("size", [(151, 119), (40, 200), (3, 5), (1, 1)])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_an_unpadded_network_gives_masks_of_any_size_whole_and_in_tiles(
    tmp_path: Path, norm: str, size: tuple[int, int]
) -> None:
    def model_with(*overrides: str) -> Predictor:
        torch.manual_seed(0)
        settings = "{in_channels: 1, widths: [4, 6, 8], padding: valid, norm: " + norm + "}"
        config = make_config(tmp_path, f"model={settings}", "augment.crop=null", *overrides)
        net = build_network(config, torch.device("cpu"))
        return replace(make_model(tmp_path), net=net, config=config)

    image = 0.4 + 0.2 * torch.randn(1, *size)
    model = model_with()
    whole = model.logits(image)
    assert whole.shape == (2, *size)
    # Beyond its borders the image is mirrored.
    wider = np.pad(model.normalization(image).numpy(), ((0, 0), (20, 99), (20, 99)), "symmetric")
    with torch.inference_mode():
        sides = [unet_geometry("none", 3, padding="valid").input_side(side) for side in size]
        by_hand = model.net(torch.from_numpy(wider[None, :, : sides[0], : sides[1]]))[0]
    torch.testing.assert_close(whole, by_hand[:, : size[0], : size[1]], rtol=1e-5, atol=1e-5)
    for tiling in ("{size: [116, 96]}", "{size: [116, 88], overlap: 9, batch_size: 3}"):
        tiled = model_with(f"tiling={tiling}").logits(image)
        if norm == "group":
            assert float((tiled - whole).abs().mean()) < 0.2 * float(whole.std()) + 1e-5
        else:
            torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def test_tiles_are_computed_in_the_precision_of_the_config(checkpoint: Path) -> None:
    image = 0.4 + 0.2 * torch.randn(1, 151, 119)
    overrides = ["train.precision=bfloat16", "tiling={size: [64, 40], batch_size: 2}"]
    whole, short = (
        load_model(checkpoint, overrides=these).logits(image) for these in ([], overrides)
    )
    assert short.dtype == torch.float32
    assert not torch.equal(short, whole)
    assert float((short - whole).abs().mean()) < 0.02


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_batch_of_images_has_the_logits_of_each_of_them(tmp_path: Path, padding: str) -> None:
    settings = "{in_channels: 1, widths: [4, 6], norm: group, padding: " + padding + "}"
    config = make_config(tmp_path, f"model={settings}", "augment.crop=null")
    net = build_network(config, torch.device("cpu"))
    model = replace(make_model(tmp_path), net=net, config=config)
    images = list(0.4 + 0.2 * torch.randn(3, 1, 21, 33))
    images[1][0, :4] = math.nan  # missing pixels, which are normalised apart
    for one in (model, Ensemble((model, model))):
        together = one.batch_logits(images)
        alone = torch.stack([one.logits(image) for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_small_images_go_through_the_network_together(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    sizes = [(64, 64), (64, 32), (128, 128), (2000, 8), (1, 1)]
    assert list(map(model.batch_size, sizes)) == [4, 8, 1, 1, 1024]
    # On a GPU as many as have the pixels of a tile.
    fast = replace(model, device=torch.device("cuda"))
    assert list(map(fast.batch_size, sizes[:4])) == [256, 512, 64, 1]
    settings = make_config(tmp_path, "tiling.batch_size=6")
    assert replace(model, config=settings).batch_size((128, 128)) == 6
    scaled = replace(model, config=make_config(tmp_path, "data.scale=0.5"))
    assert Ensemble((model, scaled)).batch_size((64, 64)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_tiles_on_cuda_equal_the_whole_image_on_the_cpu(checkpoint: Path) -> None:
    image = 0.4 + 0.2 * torch.randn(1, 151, 119)
    overrides = ["train.precision=float32", "tiling={size: [64, 40], batch_size: 3}"]
    whole = load_model(checkpoint, "cpu").logits(image)
    model = load_model(checkpoint, "cuda", overrides)
    tiled = model.logits(image)
    assert tiled.device.type == "cuda"
    torch.testing.assert_close(tiled.cpu(), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("norm", "blends"), [("batch", False), ("none", False), ("group", True)])
def test_only_tiles_of_norms_with_statistics_of_the_image_are_blended(
    tmp_path: Path, norm: str, blends: bool
) -> None:
    config = make_config(tmp_path, f"model.norm={norm}")
    model = replace(
        make_model(tmp_path), net=build_network(config, torch.device("cpu")), config=config
    )
    assert model.tiles == Tiles((1024, 1024), overlap=16, align=2, blend=blends)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    rewrite(checkpoint, model={})
    with pytest.raises(ValueError, match=r"best\.pt: the weights do not fit the network"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.classes.third=3", "data.classes.third was not there and is now 3"),
        ("model.widths=[4, 16]", r"model.widths was \[4, 8\] and is now \[4, 16\]"),
        ("train.seed=3", "train.seed was 0 and is now 3"),
        ("data.validation={fraction: 0.5}", "data.validation.fraction was 0.34 and is now 0.5"),
    ],
)
def test_settings_of_the_training_cannot_be_changed(
    checkpoint: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"best\.pt: a trained model keeps .*{message}"):
        load_model(checkpoint, overrides=[override])


def test_settings_of_files_and_tiles_can_be_changed(checkpoint: Path) -> None:
    overrides = ["data.root=elsewhere", "tiling.overlap=64", "train.precision=bfloat16"]
    assert load_model(checkpoint, overrides=overrides).config.tiling.overlap == 64


def test_a_loaded_model_is_saved_as_it_was(tmp_path: Path) -> None:
    model, image = make_model(tmp_path), torch.rand(1, 21, 33)
    model.net(1 + torch.randn(2, 1, 16, 16))
    save_checkpoint(tmp_path / "best.pt", model.contents())
    loaded = load_model(tmp_path / "best.pt")
    save_checkpoint(tmp_path / "again.pt", loaded.contents())
    contents = load_checkpoint(tmp_path / "again.pt")
    assert states_equal(contents, load_checkpoint(tmp_path / "best.pt"))
    assert torch.equal(load_model(tmp_path / "again.pt").logits(image), loaded.logits(image))


def test_a_list_of_one_checkpoint_gives_one_model(checkpoint: Path) -> None:
    assert isinstance(load_model([checkpoint]), Predictor)


def test_an_ensemble_averages_probabilities(tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pt")
        model = make_model(tmp_path)
        other = Normalization(mean=(0.1 * seed,), std=(0.2,))
        save_checkpoint(paths[-1], dataclasses.replace(model, normalization=other).contents())
    image = torch.rand(1, 20, 30)
    together = load_model(paths)
    assert isinstance(together, Ensemble)
    assert len(together.members) == 3
    alone = [load_model(path).logits(image).softmax(0) for path in paths]
    torch.testing.assert_close(together.logits(image).exp(), torch.stack(alone).mean(0))
    assert torch.equal(together.predict(image), sum(alone).argmax(0).to(torch.uint8))


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        ({"ground": 0, "sphere": 200}, "ground: 0, sphere: 200"),
        ({"ground": 5, "box": 9}, "ground: 5, box: 9"),
        ({"box": 200, "ground": 0}, "box: 200, ground: 0"),
        ({"ground": [0, 0, 0], "box": [0, 0, 200]}, r"ground: \(0, 0, 0\), box: \(0, 0, 200\)"),
    ],
)
def test_models_with_different_classes_are_no_ensemble(
    checkpoint: Path, tmp_path: Path, classes: dict[str, Any], shown: str
) -> None:
    other = tmp_path / "other.pt"
    contents = load_checkpoint(checkpoint)
    contents["config"]["data"]["classes"] = classes
    torch.save(contents, other)
    message = (
        rf"other\.pt: got the classes {shown} and 1 channels, expected .* ground: 0, box: 200 "
    )
    with pytest.raises(ValueError, match=message):
        load_model([checkpoint, other])
    with pytest.raises(ValueError, match=r"member 1: got the classes"):
        Ensemble((load_model(checkpoint), load_model(other)))
