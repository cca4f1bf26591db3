from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_pytorch_unet import convert, convert_weights
from convert_pytorch_unet import main as run_script
from helpers import TheirUNet, their_net, write_pairs
from PIL import Image
from torch import nn
from torch.nn import functional as F

from unet import UNet, load_model
from unet.checkpoint import load_checkpoint
from unet.cli.main import main
from unet.data.normalization import Normalization


def our_net(state: dict, classes: int = 2) -> UNet:
    contents = convert(state, [], "theirs.pth")
    net = UNet(**contents["config"]["model"], num_classes=classes)
    net.load_state_dict(contents["model"])  # strict: every name and no other
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 47), (50, 61)])
def test_logits_are_theirs(size: tuple[int, int]) -> None:
    # At sizes that are no multiples of 16 theirs loses pixels; ours extends the image.
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


def test_logits_and_parameters_of_the_full_width_are_theirs() -> None:
    theirs = their_net(1, 3, shallow=64)
    ours, image = our_net(theirs.state_dict(), 3), torch.randn(1, 1, 48, 32)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_single_output_becomes_two_classes_of_its_sigmoid() -> None:
    theirs, image = their_net(classes=1), torch.randn(1, 3, 32, 48)
    probabilities = our_net(theirs.state_dict())(image).softmax(1)
    expected = theirs(image).sigmoid()
    torch.testing.assert_close(probabilities[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_biases_of_older_files_go_into_the_batch_norm() -> None:
    theirs = their_net()
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.randn(module.out_channels), requires_grad=False)
    ours, image = our_net(theirs.state_dict()), torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


def test_the_config_follows_from_the_shapes_of_the_weights() -> None:
    state = {**their_net(1, 3).state_dict(), "mask_values": [0, 128, 255]}
    contents = convert(state, [], "theirs.pth")
    assert contents["normalization"] == {"method": "given", "mean": (0.0,), "std": (1.0,)}
    config = contents["config"]
    assert [one["value"] for one in config["data"]["classes"]] == [0, 128, 255]
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
def test_masks_get_the_values_of_the_training_masks(
    tmp_path: Path, outputs: int, mask_values: list[Any] | None, expected: list[Any]
) -> None:
    state = their_net(classes=outputs).state_dict()
    if mask_values is not None:
        state["mask_values"] = mask_values
    torch.save(state, tmp_path / "theirs.pth")
    assert run_script([str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "ours.pt")]) == 0
    classes = load_model(tmp_path / "ours.pt").classes
    assert classes.names == tuple(map(str, range(len(expected))))
    assert list(classes.values) == expected


@pytest.mark.parametrize(
    "mask_values", [[0, 128, 255], [0.0, 0.5], [[0, 0, 0, 255], [9, 9, 9, 255]], [0, [1, 2, 3]], 7]
)
def test_other_mask_values_must_be_replaced(mask_values: Any) -> None:
    state = {**their_net().state_dict(), "mask_values": mask_values}
    with pytest.raises(ValueError, match=r"theirs\.pth: data\.classes: got 'mask_values (7|\[)"):
        convert(state, [], "theirs.pth")
    contents = convert(state, ["data.classes={a: 0, b: 9}"], "theirs.pth")
    assert [one["value"] for one in contents["config"]["data"]["classes"]] == [0, 9]


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a state dict of Pytorch-UNet"):
        convert_weights({"model": {}})
    state = their_net().state_dict()
    bilinear = {key: tensor for key, tensor in state.items() if ".up." not in key}
    with pytest.raises(ValueError, match="with bilinear upsampling, expected UNet"):
        convert_weights(bilinear)
    with pytest.raises(ValueError, match=r"got attention\.weight, expected names of Pytorch-UNet"):
        convert_weights({**state, "attention.weight": torch.zeros(3)})
    partly = {key: tensor for key, tensor in state.items() if "outc" not in key}
    with pytest.raises(ValueError, match=r"in which head\.weight, head\.bias is missing or"):
        convert_weights(partly)
    volumes = {key: one[..., None] if one.ndim == 4 else one for key, one in state.items()}
    with pytest.raises(
        ValueError, match=r"Pytorch-UNet in which encoder\.stem\.0\.weight, encoder"
    ):
        convert_weights(volumes)


def test_the_prefix_of_data_parallel_is_removed() -> None:
    state = their_net().state_dict()
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    expected, weights = (convert(one, [], "theirs.pth")["model"] for one in (state, parallel))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TheirUNet:
    """Work in a folder with theirs.pth, images and masks."""
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


def test_masks_are_theirs(theirs: TheirUNet, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(["theirs.pth", "-o", "ours.pt"]) == 0
    assert capsys.readouterr().out == "wrote ours.pt; mask values: 0 0, 1 200\n"
    assert main(["predict", "ours.pt", "new/images", "-o", "masks"]) == 0
    for name in ("0.png", "1.png"):
        with Image.open(f"new/images/{name}") as picture, Image.open(f"masks/{name}") as mask:
            image, values = (torch.from_numpy(np.array(one)) for one in (picture, mask))
        expected = theirs(image[None, None] / 255)[0, 0]
        assert torch.equal(torch.where(expected.sigmoid() > 0.5, 200, 0), values)
        assert len(values.unique()) == 2
        logits = load_model("ours.pt").logits(image[None] / 255)
        torch.testing.assert_close(logits[1] - logits[0], expected, rtol=1e-4, atol=1e-4)


# More than 5 seconds: torch takes most of them to trace the network for the export.
@pytest.mark.usefixtures("theirs")
def test_a_converted_checkpoint_is_scored_exported_and_described(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = "data.classes={ground: 0, box: 200}"
    assert run_script(["theirs.pth", named, "-o", "ours.pt"]) == 0
    images = ["--images", "new/images", "--masks", "new/masks"]
    assert main(["evaluate", "ours.pt", *images, "-o", "scores"]) == 0
    assert "\nbox  " in capsys.readouterr().out
    assert main(["export", "ours.pt", "-o", "model.pt2"]) == 0
    capsys.readouterr()
    assert main(["info", "ours.pt"]) == 0
    shown = capsys.readouterr().out
    assert "box: mask value 200" in shown
    assert "mean: [0.0]" in shown
    assert main(["evaluate", "ours.pt", "data.root=new"]) == 2
    assert (
        "without validation images; give the images to score with --images DIR and --masks DIR"
        in capsys.readouterr().err
    )


def test_only_classes_and_normalization_can_be_set() -> None:
    state = their_net(1, 1).state_dict()

    def normalization(*overrides: str) -> dict[str, Any]:
        return convert(state, overrides, "theirs.pth")["normalization"]

    as_they_are = Normalization(mean=(0.0,), std=(1.0,)).to_dict()
    assert normalization("data.ignore=[9]") == as_they_are
    assert normalization("data.normalization=auto") == as_they_are
    given = "data.normalization={mean: [0.5], std: [0.25]}"
    assert normalization(given) == Normalization(mean=(0.5,), std=(0.25,)).to_dict()
    assert normalization("data.normalization=image") == Normalization("image").to_dict()
    for override, message in (
        ("data.normalization=dataset", "got dataset, expected image, percentiles or a mean and"),
        ("data.classes={a: 0, b: 1, c: 2}", "got a, b, c, expected 2 classes"),
        ("data.classes.sky=9", "got 0, 1, sky, expected 2 classes"),
        ("model.padding=valid", r"got model\.padding=valid, expected only settings of data\.cla"),
    ):
        with pytest.raises(ValueError, match=message):
            normalization(override)


@pytest.mark.usefixtures("theirs")
def test_files_that_cannot_be_converted_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load("theirs.pth")
    whole = Path("theirs.pth").read_bytes()
    Path("damaged.pth").write_bytes(whole[: len(whole) // 2])
    torch.save([1, 2], "list.pth")
    torch.save({f"net.{key}": tensor for key, tensor in state.items()}, "prefix.pth")
    torch.save({key: one for key, one in state.items() if ".up." not in key}, "bilinear.pth")
    torch.save({**state, "up2.up.bias": torch.zeros(3)}, "shape.pth")
    bias = {"inc.double_conv.0.bias": torch.zeros(4)}
    without_norm = {key: one for key, one in state.items() if "double_conv.1." not in key}
    torch.save({**without_norm, **bias}, "norm.pth")
    for name, message in (
        ("no", "No such file or directory"),
        ("damaged", "damaged.pth: cannot be loaded safely"),
        ("list", "list.pth: is not a state dict of Pytorch-UNet"),
        ("prefix", "prefix.pth: is not a state dict of Pytorch-UNet"),
        ("bilinear", "bilinear.pth: got weights of Pytorch-UNet with bilinear upsampling"),
        ("shape", "shape.pth: the weights do not fit the network"),
        ("norm", "norm.pth: the weights do not fit the network"),
    ):
        assert run_script([f"{name}.pth", "-o", "ours.pt"]) == 2
        assert message in capsys.readouterr().err
    assert not Path("ours.pt").exists()


@pytest.mark.usefixtures("theirs")
def test_an_existing_file_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ours.pt").write_text("mine")
    assert run_script(["theirs.pth", "-o", "ours.pt"]) == 2
    assert "ours.pt: exists; pass --overwrite" in capsys.readouterr().err
    assert run_script(["theirs.pth", "-o", "ours.pt", "--overwrite"]) == 0
    assert load_checkpoint(Path("ours.pt"))["val_stems"] == []


@pytest.mark.usefixtures("theirs")
def test_weights_that_are_not_converted_are_refused_with_the_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["predict", "theirs.pth", "new/images", "-o", "masks"]) == 2
    error = capsys.readouterr().err
    assert "theirs.pth: is not a checkpoint of unet; it holds weights of Pytorch-UNet" in error
    assert "scripts/convert_pytorch_unet.py theirs.pth -o checkpoint.pt" in error
