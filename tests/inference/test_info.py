from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import make_config, make_model

from unet import UNet
from unet.build import build_network
from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.config.loader import config_from_dict
from unet.inference.info import describe_checkpoint, multiply_adds
from unet.inference.predictor import Predictor
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def saved(root: Path, *overrides: str) -> Path:
    config = make_config(root, *overrides)
    model: Predictor = replace(
        make_model(root), config=config, net=build_network(config, torch.device("cpu"))
    )
    save_checkpoint(root / "best.pt", model.contents())
    return root / "best.pt"


def row(text: str, label: str) -> str:
    """A row of the description, in one line."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{label}  "))
    rest = lines[first + 1 :]
    last = next((i for i, line in enumerate(rest) if not line.startswith(" " * 20)), len(rest))
    return " ".join(line[20:].strip() for line in lines[first : first + 1 + last])


def test_the_description_has_at_most_80_columns(tmp_path: Path) -> None:
    text = describe_checkpoint(saved(tmp_path, "train.device=cpu"))
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    config = text.partition("\n\n")[2]
    assert config_from_dict(yaml.safe_load(config)) == make_config(tmp_path, "train.device=cpu")
    assert row(text, "classes") == "0  ground: mask value 0 1  box: mask value 200"
    assert row(text, "scores") == "none: there was no validation before the file was written"
    weights = sum(
        p.numel() for p in build_network(make_config(tmp_path), torch.device("cpu")).parameters()
    )
    assert row(text, "parameters") == f"{weights:,}"
    assert row(text, "multiply-adds").startswith("666.6 thousand for 24 x 32")
    assert row(text, "receptive field") == "at most 18 x 18 pixels, up to 9 to one side"


def test_the_best_and_last_scores_of_a_run_are_shown(data_root: Path) -> None:
    run = train(make_config(data_root))
    until_best = load_checkpoint(run / "best.pt")["progress"]["history"]
    text = row(describe_checkpoint(run / "best.pt"), "scores")
    shown = f"epoch {until_best[-1]['epoch']} of 3, mean IoU {until_best[-1]['mean_iou']:.4f}"
    assert f"best: {shown}" in text
    assert f"last: {shown}" in text  # as of when the file was written
    assert f"box {until_best[-1]['iou_box']:.4f}" in text
    text = row(describe_checkpoint(run / "last.pt"), "scores")
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    best = max(history, key=lambda one: one["mean_iou"])
    assert f"best: epoch {best['epoch']} of 3, mean IoU {best['mean_iou']:.4f}" in text
    assert f"last: epoch 3 of 3, mean IoU {history[-1]['mean_iou']:.4f}" in text
    assert f"box {best['iou_box']:.4f}" in text


def test_multiply_adds_are_counted_for_the_given_size(tmp_path: Path) -> None:
    path = saved(tmp_path)
    text = describe_checkpoint(path, (2000, 700))
    assert row(text, "multiply-adds").endswith("for 2000 x 700 pixels")
    whole = saved(tmp_path, "augment.crop=null")
    assert "for 512 x 512 pixels" in row(describe_checkpoint(whole), "multiply-adds")
    with pytest.raises(ValueError, match="size: got 0 x 5, expected at least 1 x 1"):
        describe_checkpoint(path, (0, 5))


def test_an_unpadded_network_is_counted_with_its_context(tmp_path: Path) -> None:
    deep = "model={in_channels: 1, widths: [2, 2, 2, 2, 2], padding: valid}"
    path = saved(tmp_path, deep, "augment.crop=[572, 204]")
    text = describe_checkpoint(path)
    assert row(text, "multiply-adds").endswith("for 388 x 20 pixels")
    same = describe_checkpoint(saved(tmp_path, deep.replace("valid", "same")), (388, 20))
    expected = "at most 204 x 204 pixels, up to 107 to one side"
    assert row(same, "receptive field") == row(text, "receptive field") == expected


def test_the_statistics_of_a_norm_depend_on_the_whole_image(tmp_path: Path) -> None:
    text = describe_checkpoint(saved(tmp_path, "model.norm=group"))
    assert row(text, "receptive field").endswith(
        "; the whole image for the statistics of norm group"
    )


def test_the_receptive_field_of_an_encoder_and_its_tiles(tmp_path: Path) -> None:
    def field_of(encoder: str, *overrides: str) -> str:
        model = f"model={{encoder: {encoder}, widths: [4, 4, 4, 4, 4], in_channels: 1}}"
        text = describe_checkpoint(saved(tmp_path, model), overrides=overrides)
        assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
        return row(text, "receptive field")

    assert field_of("resnet18") == (
        "at most 563 x 563 pixels, up to 310 to one side; tiles are blended over 256 pixels "
        "(exact from 576)"
    )
    assert field_of("resnet18", "tiling.overlap=576").endswith("tiles are exact over 576 pixels")
    assert field_of("mobilenet_v3_large") == (
        "the whole image, by squeeze-and-excitation of mobilenet_v3_large; tiles are blended over "
        "256 pixels"
    )


def by_hand(widths: tuple[int, ...], channels: int, classes: int, height: int, width: int) -> int:
    """Kernel times channels in times channels out, for each output pixel."""
    total = 0
    for level, width_here in enumerate(widths):
        pixels = (height >> level) * (width >> level)
        total += pixels * 9 * (channels * width_here + width_here * width_here)
        channels = width_here
    for level in reversed(range(len(widths) - 1)):
        pixels = (height >> level) * (width >> level)
        shallow, deep = widths[level], widths[level + 1]
        total += pixels // 4 * 4 * deep * shallow  # up: each pixel below times a 2 x 2 kernel
        total += pixels * 9 * (2 * shallow * shallow + shallow * shallow)
    return total + height * width * widths[0] * classes


@pytest.mark.parametrize("widths", [(4,), (4, 8), (3, 5, 7, 9)])
def test_multiply_adds_equal_those_counted_by_hand(widths: tuple[int, ...]) -> None:
    net = UNet(in_channels=2, num_classes=5, widths=widths)
    assert multiply_adds(net, (32, 48)) == by_hand(widths, 2, 5, 32, 48)
    unit = 2 ** (len(widths) - 1)
    assert multiply_adds(net, (33, 48)) == by_hand(widths, 2, 5, 32 + unit, 48)


def test_multiply_adds_of_the_paper_equal_those_counted_by_hand() -> None:
    net = UNet(1, 2, norm="none", padding="valid")
    total, channels = 0, 1
    # Sides after each convolution and up-convolution of figure 1, all levels down and up.
    for width, sides in zip((64, 128, 256, 512, 1024), (570, 282, 138, 66, 30), strict=True):
        total += 9 * (channels * sides**2 + width * (sides - 2) ** 2) * width
        channels = width
    for width, side in zip((512, 256, 128, 64), (56, 104, 200, 392), strict=True):
        total += side**2 * 2 * width * width
        total += 9 * (2 * width * (side - 2) ** 2 + width * (side - 4) ** 2) * width
    assert multiply_adds(net, (388, 388)) == total + 388**2 * 64 * 2


def test_the_largest_image_is_counted_without_computing_it() -> None:
    net, side = UNet(3, 2, widths=(64, 128)), 2**20
    assert multiply_adds(net, (side, side)) == by_hand((64, 128), 3, 2, side, side)
    assert next(net.parameters()).device.type == "cpu"
    assert net.training
