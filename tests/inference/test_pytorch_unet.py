from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TheirUNet, their_net, write_pairs
from PIL import Image
from torch import nn
from torch.nn import functional as F

from unet import UNet, load_model
from unet.cli.main import main
from unet.data.normalization import Normalization
from unet.inference.pytorch_unet import is_pytorch_unet, to_checkpoint

# A network of their module names, from torch's own layers alone.


def our_net(state: dict, classes: int = 2) -> UNet:
    contents = to_checkpoint(state)
    net = UNet(**contents["config"]["model"], num_classes=classes)
    net.load_state_dict(contents["model"])  # strictly: every name, and none besides
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 47), (50, 61)])
def test_logits_are_theirs(size: tuple[int, int]) -> None:
    """At other sizes than multiples of 16 theirs loses pixels, where the image here is extended."""
    theirs = their_net()
    image = torch.randn(2, 3, *size)
    bottom, right = (max(-side % 16, 32 - side) for side in size)
    expected = theirs(F.pad(image, (0, right, 0, bottom), mode="replicate"))
    torch.testing.assert_close(
        our_net(theirs.state_dict())(image),
        expected[..., : size[0], : size[1]],
        rtol=1e-4,
        atol=1e-4,
    )


def test_logits_of_their_own_size() -> None:
    theirs = their_net(1, 3, shallow=64)
    ours, image = our_net(theirs.state_dict(), 3), torch.randn(1, 1, 48, 32)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_single_output_becomes_two_classes_of_its_sigmoid() -> None:
    theirs, image = their_net(classes=1), torch.randn(1, 3, 32, 48)
    probabilities = our_net(theirs.state_dict())(image).softmax(1)
    expected = theirs(image).sigmoid()
    torch.testing.assert_close(probabilities[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_older_files_have_biases_that_batch_norm_takes_away() -> None:
    theirs = their_net()
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.randn(module.out_channels), requires_grad=False)
    ours, image = our_net(theirs.state_dict()), torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


def test_what_a_state_dict_tells_of_its_network() -> None:
    state = {**their_net(1, 3).state_dict(), "mask_values": [0, 128, 255]}
    assert is_pytorch_unet(state)
    contents = to_checkpoint(state)
    assert contents["normalization"] == {"mean": (0.0,), "std": (1.0,)}
    config = contents["config"]
    assert config["data"]["classes"] == {"0": 0, "1": 128, "2": 255}
    assert (config["model"]["in_channels"], config["model"]["widths"]) == (1, [4, 8, 16, 32, 64])


@pytest.mark.parametrize(
    ("outputs", "mask_values", "expected"),
    [
        (1, None, [0, 1]),
        (3, None, [0, 1, 2]),
        (1, [0, 255], [0, 255]),
        (2, [False, True], [0, 1]),
        (2, [[0, 0, 0], [255, 0, 128]], [(0, 0, 0), (255, 0, 128)]),
    ],
)
def test_masks_have_the_values_of_the_masks_they_were_trained_with(
    tmp_path: Path, outputs: int, mask_values: list[Any] | None, expected: list[Any]
) -> None:
    state = their_net(classes=outputs).state_dict()
    if mask_values is not None:
        state["mask_values"] = mask_values
    torch.save(state, tmp_path / "theirs.pth")
    classes = load_model(tmp_path / "theirs.pth").classes
    assert classes.names == tuple(map(str, range(len(expected))))
    assert list(classes.values) == expected


@pytest.mark.parametrize(
    "mask_values", [[0, 128, 255], [0.0, 0.5], [[0, 0, 0, 255], [9, 9, 9, 255]], [0, [1, 2, 3]], 7]
)
def test_mask_values_that_mean_nothing_here_are_to_be_replaced(
    tmp_path: Path, mask_values: Any
) -> None:
    path = tmp_path / "theirs.pth"
    torch.save({**their_net().state_dict(), "mask_values": mask_values}, path)
    with pytest.raises(ValueError, match=r"theirs\.pth: data\.classes: got 'mask_values (7|\[)"):
        load_model(path)
    assert load_model(path, overrides=["data.classes={a: 0, b: 9}"]).classes.values == (0, 9)


def test_other_networks_are_told_apart() -> None:
    assert not is_pytorch_unet({"model": {}})
    assert not is_pytorch_unet([1, 2])
    state = their_net().state_dict()
    bilinear = {key: tensor for key, tensor in state.items() if ".up." not in key}
    with pytest.raises(ValueError, match="with bilinear upsampling, expected those of UNet"):
        to_checkpoint(bilinear)
    with pytest.raises(ValueError, match=r"got attention\.weight, expected names of Pytorch-UNet"):
        to_checkpoint({**state, "attention.weight": torch.zeros(3)})
    partly = {key: tensor for key, tensor in state.items() if "outc" not in key}
    with pytest.raises(ValueError, match=r"whose head\.weight, head\.bias are missing or"):
        to_checkpoint(partly)
    volumes = {key: one[..., None] if one.ndim == 4 else one for key, one in state.items()}
    with pytest.raises(ValueError, match=r"Pytorch-UNet whose stem\.0\.weight, encoder\.0\.conv"):
        to_checkpoint(volumes)


def test_names_of_data_parallel_are_the_same() -> None:
    state = their_net().state_dict()
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    assert is_pytorch_unet(parallel)
    expected, weights = to_checkpoint(state)["model"], to_checkpoint(parallel)["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TheirUNet:
    """In a folder with its file theirs.pth, and images and masks."""
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("new"), 2)
    for path in Path("new").glob("*/*.png"):
        with Image.open(path) as picture:
            picture.crop((0, 0, 48, 32)).save(path)
    net = their_net(1, 1)
    with Image.open("new/images/0.png") as picture:
        image = torch.from_numpy(np.array(picture))
    net.outc.conv.bias -= net(image[None, None] / 255).mean()  # both classes are found
    torch.save({**net.state_dict(), "mask_values": [0, 200]}, "theirs.pth")
    return net


def test_masks_are_theirs(theirs: TheirUNet) -> None:
    assert main(["predict", "theirs.pth", "new/images", "-o", "masks"]) == 0
    for name in ("0.png", "1.png"):
        with Image.open(f"new/images/{name}") as picture, Image.open(f"masks/{name}") as mask:
            image, values = (torch.from_numpy(np.array(one)) for one in (picture, mask))
        expected = theirs(image[None, None] / 255)[0, 0]
        assert torch.equal(torch.where(expected.sigmoid() > 0.5, 200, 0), values)
        assert len(values.unique()) == 2
        logits = load_model("theirs.pth").logits(image[None] / 255)
        torch.testing.assert_close(logits[1] - logits[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("theirs")
def test_they_are_scored_exported_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    classes = "data.classes={ground: 0, box: 200}"
    images = ["--images", "new/images", "--masks", "new/masks"]
    assert main(["evaluate", "theirs.pth", *images, classes, "-o", "scores"]) == 0
    assert "\nbox  " in capsys.readouterr().out
    assert main(["export", "theirs.pth", "-o", "model.pt2", classes]) == 0
    capsys.readouterr()
    assert main(["info", "theirs.pth", classes]) == 0
    shown = capsys.readouterr().out
    assert "box: mask value 200" in shown
    assert "mean: [0.0]" in shown
    assert "none: these are weights of Pytorch-UNet" in shown
    for unknown in ("root", "epochs", "lr:"):
        assert unknown not in shown
    assert main(["evaluate", "theirs.pth"]) == 2
    assert "validation images nobody knows, expected --images and --masks" in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("theirs")
def test_only_what_they_do_not_know_may_be_said() -> None:
    def load(override: str) -> dict[str, Any]:
        return load_model("theirs.pth", overrides=[override]).normalization.to_dict()

    assert load("data.ignore=[9]") == load("data.normalization=auto")
    assert load("data.normalization=auto") == Normalization(mean=(0.0,), std=(1.0,)).to_dict()
    given = "data.normalization={mean: [0.5], std: [0.25]}"
    assert load(given) == Normalization(mean=(0.5,), std=(0.25,)).to_dict()
    assert load("data.normalization=image") == Normalization(method="image").to_dict()
    for override, message in (
        ("data.normalization=dataset", "got dataset, expected image, percentiles or numbers"),
        ("data.classes={a: 0, b: 1, c: 2}", "got a, b, c, expected 2 classes"),
        ("data.classes.sky=9", "got 0, 1, sky, expected 2 classes"),
        ("model.padding=valid", "a trained model keeps its settings, but model.padding was"),
    ):
        with pytest.raises(ValueError, match=rf"theirs\.pth: .*{message}"):
            load(override)


@pytest.mark.usefixtures("theirs")
def test_files_that_cannot_be_taken_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load("theirs.pth")
    whole = Path("theirs.pth").read_bytes()
    Path("damaged.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({f"net.{key}": tensor for key, tensor in state.items()}, "prefix.pth")
    torch.save({key: one for key, one in state.items() if ".up." not in key}, "bilinear.pth")
    torch.save({**state, "up2.up.bias": torch.zeros(3)}, "shape.pth")
    bias = {"inc.double_conv.0.bias": torch.zeros(4)}
    without_norm = {key: one for key, one in state.items() if "double_conv.1." not in key}
    torch.save({**without_norm, **bias}, "norm.pth")
    for name, message in (
        ("damaged", "cannot be loaded safely"),
        ("prefix", "is not a checkpoint of unet; take a best.pt or last.pt that 'unet train' "),
        ("bilinear", "got weights of Pytorch-UNet with bilinear upsampling"),
        ("shape", "the weights do not fit the model"),
        ("norm", "the weights do not fit the model"),
    ):
        assert main(["predict", f"{name}.pth", "new/images", "-o", "masks"]) == 2
        assert f"{name}.pth: {message}" in capsys.readouterr().err
    assert not Path("masks").exists()
