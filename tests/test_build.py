from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config, small_config

from unet.build import build_loss, build_optimizer, list_pairs, list_validation_pairs
from unet.models.unet import UNet


def test_the_optimizer_has_the_settings_of_the_config() -> None:
    net = UNet(1, widths=(4,))
    adamw = build_optimizer(
        make_config(Path(), "optimizer={lr: 0.3, weight_decay: 0.2, momentum: 0.8}"), net
    )
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["lr"] == 0.3
    assert adamw.defaults["weight_decay"] == 0.2
    assert adamw.defaults["betas"] == (0.8, 0.999)
    sgd = build_optimizer(make_config(Path(), "optimizer={name: sgd, lr: 0.3, momentum: 0.8}"), net)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.01
    assert sgd.defaults["nesterov"]


def test_balanced_class_weights_are_inverse_class_frequencies() -> None:
    """Summed over the pixels, each class then has the same weight."""
    pixels = np.array([100, 300, 0])
    loss = build_loss(make_config(Path(), "loss.class_weights=balanced"), pixels)
    weights = loss.class_weights.tolist()
    assert weights == pytest.approx([4 / 3, 4 / 9, 0])
    assert weights[0] * pixels[0] == pytest.approx(weights[1] * pixels[1])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("masks", ["{cell: c, rod: r}", "{rod: r, cell: c}"])
def test_masks_per_class_are_sorted_by_class_id(tmp_path: Path, masks: str) -> None:
    touch(tmp_path, *(f"{folder}/7.png" for folder in ("images", "c", "r")))
    config = small_config(
        f"data.root={tmp_path}",
        "data.classes={ground: 0, cell: 1, rod: 2}",
        f"data.masks={masks}",
        f"data.validation={{images: images, masks: {masks}}}",
    )
    for pairs, errors in (list_pairs(config), list_validation_pairs(config)):
        assert not errors
        assert [Path(path).parent.name for path in pairs[0].masks] == ["c", "r"]
