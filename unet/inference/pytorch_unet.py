"""Weights of the widely used Pytorch-UNet as a checkpoint of this project.

Its layers are those of `UNet` with norm batch, from the same parameters and in the same order; the
skip comes first where both are put together.

Source: https://github.com/milesial/Pytorch-UNet: unet/unet_model.py, unet/unet_parts.py; of
mask_values train.py, predict.py and utils/data_loading.py.
"""

import reprlib
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


# Before all names in a file of nn.DataParallel.
_PARALLEL = "module."


def is_pytorch_unet(contents: Any) -> bool:
    """Whether what a file holds is a state dict of Pytorch-UNet."""
    return isinstance(contents, Mapping) and any(
        f"{prefix}inc.double_conv.0.weight" in contents for prefix in ("", _PARALLEL)
    )


def to_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Make what a checkpoint holds of a state dict of Pytorch-UNet.

    A single output, whose sigmoid is a probability, becomes two, the first of them 0: the softmax
    of both is that sigmoid. The config is of the network's shapes, with numbers for the names of
    the classes; images from 0 to 1 stay as they are. What it must have besides, such as the epochs
    of the training, nobody knows, and stands for nothing.

    Args:
        state: names and tensors, and perhaps mask_values: what each class is in masks.

    Raises:
        ValueError: if the network is the bilinear variant, or another, or something is missing.
    """
    state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
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
    mask_values = state.pop("mask_values", None)
    for key, tensor in state.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is None or not isinstance(tensor, Tensor):
            raise ValueError(
                f"got {key}, expected names of Pytorch-UNet, such as {next(iter(names))}"
            )
        weights[names[prefix] + key.removeprefix(prefix)] = tensor
    levels = ["stem.0.weight", *(f"encoder.{i}.conv.0.weight" for i in range(depth))]
    dimensions = {**dict.fromkeys([*levels, "head.weight"], 4), "head.bias": 1}
    if wrong := [
        key for key, n in dimensions.items() if key not in weights or weights[key].ndim != n
    ]:
        raise ValueError(
            f"got weights of Pytorch-UNet whose {', '.join(wrong)} are missing or have another "
            "number of dimensions, expected all that UNet(bilinear=False) has"
        )
    # Before 2022 its convolutions had a bias, which the batch norm behind them takes away again.
    for mean in [key for key in weights if key.endswith((".1.running_mean", ".4.running_mean"))]:
        block, place = mean.removesuffix(".running_mean").rsplit(".", 1)
        if (bias := f"{block}.{int(place) - 1}.bias") in weights:
            weights[mean] = weights[mean] - weights.pop(bias)
    if len(weights["head.bias"]) == 1:
        for key in ("head.weight", "head.bias"):
            weights[key] = torch.cat([torch.zeros_like(weights[key]), weights[key]])
    in_channels = weights["stem.0.weight"].shape[1]
    as_they_are = {"mean": (0.0,) * in_channels, "std": (1.0,) * in_channels}
    return {
        "format": FORMAT,
        "config": {
            "name": FORMAT,
            "data": {
                "root": "unknown",
                "classes": _classes(mask_values, len(weights["head.bias"])),
                "normalization": as_they_are,
                "validation": {"stems": "unknown"},
            },
            "model": {
                "in_channels": in_channels,
                "widths": [len(weights[key]) for key in levels],
                "norm": "batch",
                "padding": "same",
            },
            "train": {"epochs": 1},
        },
        "normalization": as_they_are,
        "val_stems": [],
        "palette": None,
        "model": weights,
    }


def _classes(mask_values: Any, count: int) -> dict[str, Any]:
    """data.classes; of values that mean nothing here a text, which it refuses until overridden."""
    match mask_values:
        case None:
            values: list[Any] = list(range(count))
        case [*numbers] if len(numbers) == count and all(isinstance(one, int) for one in numbers):
            values = [int(number) for number in numbers]  # False and True of masks of one bit, too
        case [*colours] if len(colours) == count and all(map(_is_colour, colours)):
            values = colours
        case _:
            values = [f"mask_values {reprlib.repr(mask_values)}"] * count
    return {str(i): value for i, value in enumerate(values)}


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(one in range(256) for one in value)
