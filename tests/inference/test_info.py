from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import make_config, make_model

from unet.build import build_network
from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.config.loader import config_from_dict
from unet.inference.info import describe_checkpoint
from unet.inference.predictor import Predictor
from unet.training.trainer import train

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


def test_a_checkpoint_is_described_within_80_columns(tmp_path: Path) -> None:
    text = describe_checkpoint(saved(tmp_path, "train.device=cpu"))
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    config = text.partition("\ncheckpoint ")[0]
    assert config_from_dict(yaml.safe_load(config)) == make_config(tmp_path, "train.device=cpu")
    assert row(text, "classes") == "0  ground: mask value 0 1  box: mask value 200"
    assert row(text, "scores") == "none: the file was written before a validation"
    weights = sum(
        p.numel() for p in build_network(make_config(tmp_path), torch.device("cpu")).parameters()
    )
    assert row(text, "parameters") == f"{weights:,}"
    assert row(text, "multiply-adds").startswith("666.6 thousand at 24 x 32")
    assert row(text, "receptive field") == "18 x 18 pixels at most, up to 9 to one side"
    assert "batches of 2 x 24 x 32 pixels in float32" in row(text, "training memory")


def test_the_scores_of_a_run_are_in_its_checkpoints(data_root: Path) -> None:
    run = train(make_config(data_root, "train.previews=0"))
    until_best = load_checkpoint(run / "best.pt")["progress"]["history"]
    text = row(describe_checkpoint(run / "best.pt"), "scores")
    shown = f"epoch {until_best[-1]['epoch']} of 3, mean IoU {until_best[-1]['mean_iou']:.4f}"
    assert f"best: {shown}" in text
    assert f"last: {shown}" in text  # what came later, this file cannot know
    assert f"box {until_best[-1]['iou_box']:.4f}" in text
    text = row(describe_checkpoint(run / "last.pt"), "scores")
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    best = max(history, key=lambda one: one["mean_iou"])
    assert f"best: epoch {best['epoch']} of 3, mean IoU {best['mean_iou']:.4f}" in text
    assert f"last: epoch 3 of 3, mean IoU {history[-1]['mean_iou']:.4f}" in text
    assert f"box {best['iou_box']:.4f}" in text


def test_memory_is_that_on_the_device_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device, dtype in (("cuda", "float16"), ("cuda:7", "float16"), ("cpu", "float32")):
        text = row(
            describe_checkpoint(saved(tmp_path, f"train.device={device}")), "training memory"
        )
        # Without a GPU here that could tell whether it has bfloat16, of the same size.
        assert text.endswith(f"pixels in {dtype}") or torch.cuda.is_available()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    for device, dtype in (("auto", "bfloat16"), ("cuda", "bfloat16"), ("cpu", "float32")):
        text = row(
            describe_checkpoint(saved(tmp_path, f"train.device={device}")), "training memory"
        )
        assert text.endswith(f"pixels in {dtype}")


def test_costs_are_those_at_the_size_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path)
    text = describe_checkpoint(path, (2000, 700))
    assert row(text, "multiply-adds").endswith("at 2000 x 700 pixels")
    assert "for 1 x 1024 x 700 pixels, a batch of tiles" in row(text, "prediction memory")
    assert "batches of 2 x 24 x 32 pixels" in row(text, "training memory")
    text = describe_checkpoint(path, overrides=["tiling={size: [64, 64], batch_size: 5}"])
    assert "for 1 x 24 x 32 pixels" in row(text, "prediction memory")
    whole = saved(tmp_path, "augment.crop=null")
    assert "at 512 x 512 pixels" in row(describe_checkpoint(whole), "multiply-adds")
    huge = describe_checkpoint(path, (10**6, 10**6), ["tiling.size=[1000000,1000000]"])
    assert "GiB for 1 x 1000000 x 1000000 pixels" in row(huge, "prediction memory")
    with pytest.raises(ValueError, match="info: got a size of 0 x 5, expected at least 1 x 1"):
        describe_checkpoint(path, (0, 5))


def test_an_unpadded_networks_context_costs(tmp_path: Path) -> None:
    deep = "model={in_channels: 1, widths: [2, 2, 2, 2, 2], padding: valid}"
    path = saved(tmp_path, deep, "augment.crop=[572, 204]")
    text = describe_checkpoint(path)
    assert row(text, "multiply-adds").endswith("at 388 x 20 pixels")
    assert "batches of 2 x 572 x 204 pixels" in row(text, "training memory")
    assert "for 1 x 572 x 204 pixels" in row(text, "prediction memory")
    text = describe_checkpoint(path, (2000, 5))
    assert "for 1 x 1036 x 204 pixels, a batch of tiles" in row(text, "prediction memory")
    same = describe_checkpoint(saved(tmp_path, deep.replace("valid", "same")), (388, 20))
    assert _seen(same) == _seen(text) == "204 x 204 pixels at most, up to 107 to one side"


def _seen(text: str) -> str:
    return row(text, "receptive field")


def test_what_the_optimizer_and_the_average_keep_counts(tmp_path: Path) -> None:
    def kept(*overrides: str) -> tuple[str, str]:
        text = row(describe_checkpoint(saved(tmp_path, *overrides)), "training memory")
        weights, optimizer = text.split(", ")[:2]
        return weights.rpartition("weights ")[2], optimizer

    wide = "model.widths=[128, 512]"
    weights, optimizer = kept(wide)
    size = float(weights.removesuffix(" MiB"))
    assert size > 10
    assert optimizer == f"adamw {2 * size:.0f} MiB" or abs(_mib(optimizer) - 2 * size) <= 1
    _, optimizer = kept(wide, "optimizer.name=sgd", "train.ema_decay=0.99")
    assert optimizer.startswith("sgd and average ")
    assert abs(_mib(optimizer) - 2 * size) <= 1


def _mib(text: str) -> float:
    return float(text.removesuffix(" MiB").rpartition(" ")[2])


def test_a_norm_with_statistics_of_the_image_sees_all_of_it(tmp_path: Path) -> None:
    text = describe_checkpoint(saved(tmp_path, "model.norm=group"))
    assert row(text, "receptive field").endswith("of norm group, the whole image")


def test_what_an_encoder_of_torchvision_sees(tmp_path: Path) -> None:
    def sees(encoder: str, *overrides: str) -> str:
        model = f"model={{encoder: {encoder}, widths: [4, 4, 4, 4, 4], in_channels: 1}}"
        text = describe_checkpoint(saved(tmp_path, model), overrides=overrides)
        assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
        return row(text, "receptive field")

    assert sees("resnet18") == (
        "563 x 563 pixels at most, up to 310 to one side; tiles blend over 256 pixels (exact from "
        "576)"
    )
    assert sees("resnet18", "tiling.overlap=576").endswith("tiles are exact over 576 pixels")
    assert sees("mobilenet_v3_large") == (
        "the whole image, by squeeze-and-excitation of mobilenet_v3_large; tiles blend over 256 "
        "pixels"
    )
