"""The choice of a dtype by measurement."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from unet.build import build_network, build_optimizer, memory_format
from unet.config.schema import Config
from unet.models.losses import SegmentationLoss
from unet.runtime import distributed
from unet.runtime.device import time_dtypes
from unet.runtime.text import format_duration
from unet.training.step import TrainingStep


@distributed.on_first_rank
def choose_precision(
    config: Config, device: torch.device, network: nn.Module | None = None
) -> Config:
    """Replace `train.precision: auto` on a CPU by the faster one of float32 and bfloat16.

    It is float32 if a step takes less than 20 ms, or if bfloat16 is not at least 1.1 times as fast.
    """
    if config.train.precision != "auto" or device.type != "cpu":
        return config
    net = build_network(config, device, copy.deepcopy(network))
    step = TrainingStep(
        net,
        SegmentationLoss(),
        build_optimizer(config, net),
        memory_format=memory_format(config),
        freezes=config.train.freeze_encoder_epochs > 0,
    )

    def run(dtype: torch.dtype, side: int) -> None:
        step.dtype = dtype
        side = net.geometry.input_side(side)
        image = torch.randn(1, net.in_channels, side, side)
        step.gradients([(image, torch.zeros(1, side, side, dtype=torch.int64))])
        step.update(0.0)

    largest = min(config.augment.crop or (256, 256))
    times = time_dtypes(run, torch.bfloat16, largest)
    is_faster = times is not None and 1.1 * times[torch.bfloat16] < times[torch.float32]
    precision: Literal["float32", "bfloat16"] = "bfloat16" if is_faster else "float32"
    if times is not None:
        seconds = [
            f"{format_duration(times[dtype])} in {name}"
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        ]
        print(
            f"train.precision: {precision}, because a training step with one image takes "
            f"{' and '.join(seconds)}"
        )
    return replace(config, train=replace(config.train, precision=precision))
