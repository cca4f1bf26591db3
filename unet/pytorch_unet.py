"""Weights of the widely used Pytorch-UNet: their names in this project.

Its layers are those of `UNet` with norm batch, from the same parameters and in the same order; the
skip comes first where both are put together.

Source: https://github.com/milesial/Pytorch-UNet, unet/unet_model.py and unet/unet_parts.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FORMAT = "Pytorch-UNet"

# {n} counts from 1 there, {i} from 0 here.
_NAMES = {
    "inc.double_conv.": "stem.",
    "down{n}.maxpool_conv.1.double_conv.": "encoder.{i}.conv.",
    "up{n}.up.": "decoder.{i}.up.",
    "up{n}.conv.double_conv.": "decoder.{i}.conv.",
    "outc.conv.": "head.",
}


def is_pytorch_unet(contents: Any) -> bool:
    """Whether what a file holds is a state dict of Pytorch-UNet."""
    return isinstance(contents, Mapping) and "inc.double_conv.0.weight" in contents


def to_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename a state dict of Pytorch-UNet, and tell what it is of its shapes.

    A single output, whose sigmoid is a probability, becomes two, the first of them 0: the softmax
    of both is that sigmoid.

    Args:
        state: names and tensors; mask_values, which some files hold besides, is left out.

    Returns:
        As a checkpoint has them: model; normalization, which leaves images from 0 to 1 as they are;
        and of the config what is known, with numbers for the names of the classes.

    Raises:
        ValueError: if the network is the bilinear variant, or another.
    """
    if "up1.up.weight" not in state:
        raise ValueError(
            "got weights of Pytorch-UNet with bilinear upsampling, expected those of "
            "UNet(bilinear=False), which has up-convolutions as the U-Net here"
        )
    depth = sum(key.endswith(".up.weight") for key in state)
    names = {
        theirs.format(n=i + 1): ours.format(i=i)
        for theirs, ours in _NAMES.items()
        for i in range(depth)
    }
    weights: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "mask_values":
            continue
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is None or not isinstance(tensor, Tensor):
            raise ValueError(
                f"got {key}, expected names of Pytorch-UNet, such as {next(iter(names))}"
            )
        weights[names[prefix] + key.removeprefix(prefix)] = tensor
    # Before 2022 its convolutions had a bias, which the batch norm behind them takes away again.
    for key in [key for key in weights if key.endswith(("0.bias", "3.bias"))]:
        block, place = key.removesuffix(".bias").rsplit(".", 1)
        mean = f"{block}.{int(place) + 1}.running_mean"
        weights[mean] = weights[mean] - weights.pop(key)
    if len(weights["head.bias"]) == 1:
        for key in ("head.weight", "head.bias"):
            weights[key] = torch.cat([torch.zeros_like(weights[key]), weights[key]])
    levels = ["stem.0.weight", *(f"encoder.{i}.conv.0.weight" for i in range(depth))]
    in_channels = weights["stem.0.weight"].shape[1]
    return {
        "format": FORMAT,
        "model": weights,
        "normalization": {"mean": (0.0,) * in_channels, "std": (1.0,) * in_channels},
        "config": {
            "data": {"classes": [str(i) for i in range(len(weights["head.bias"]))]},
            "model": {
                "in_channels": in_channels,
                "widths": [len(weights[key]) for key in levels],
                "norm": "batch",
            },
        },
    }
