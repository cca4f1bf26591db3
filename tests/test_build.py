from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config

from unet.build import build_loss, build_optimizer
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
