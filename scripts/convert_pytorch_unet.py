"""Convert weights of Pytorch-UNet into a checkpoint of unet: theirs.pth -o checkpoint.pt.

The file is a state dict of its `UNet(bilinear=False)`. Its layers are those of `unet.UNet` with
norm batch, in the same order; where two tensors are concatenated, the skip comes first. A single
output, whose sigmoid is the probability, becomes two classes, and the logit of the first is 0.

Classes are named 0, 1, ... and have the mask values that the file holds. Images are not normalised,
as in Pytorch-UNet. Both can be set: "data.classes={background: 0, cell: 255}",
data.normalization=image.

Source: https://github.com/milesial/Pytorch-UNet, unet/unet_model.py and unet/unet_parts.py;
mask_values in train.py.
"""

import argparse
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet.build import build_network, build_normalization
from unet.checkpoint import save_checkpoint
from unet.config.loader import config_from_dict
from unet.config.values import config_to_dict
from unet.data.normalization import Normalization
from unet.runtime.files import load_torch_file

# Prefixes of names, theirs and ours; {n} counts from 1, {i} from 0.
_NAMES = {
    "inc.double_conv.": "encoder.stem.",
    "down{n}.maxpool_conv.1.double_conv.": "encoder.backbone.{i}.conv.",
    "up{n}.up.": "decoder.{i}.up.",
    "up{n}.conv.double_conv.": "decoder.{i}.conv.",
    "outc.conv.": "head.",
}
_SETTINGS = ("data.classes", "data.ignore", "data.normalization")


def convert_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of a state dict of Pytorch-UNet to those of `unet.UNet`.

    Raises:
        ValueError: if it is the bilinear variant or another network, or tensors are missing.
    """
    if not any(key.startswith("inc.double_conv.") for key in state):
        raise ValueError("is not a state dict of Pytorch-UNet: inc.double_conv.0.weight is missing")
    if "up1.up.weight" not in state:
        raise ValueError(
            "got weights of Pytorch-UNet with bilinear upsampling, expected UNet(bilinear=False), "
            "which has transposed convolutions"
        )
    depth = sum(key.endswith(".up.weight") for key in state)
    names = {
        theirs.format(n=i + 1): ours.format(i=i)
        for theirs, ours in _NAMES.items()
        for i in range(depth)
    }
    weights: dict[str, Tensor] = {}
    for key, tensor in state.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is None or not isinstance(tensor, Tensor):
            example = next(iter(names))
            raise ValueError(f"got {key}, expected names of Pytorch-UNet, such as {example}")
        weights[names[prefix] + key.removeprefix(prefix)] = tensor
    dimensions = {**dict.fromkeys([*_level_keys(depth), "head.weight"], 4), "head.bias": 1}
    if wrong := [
        key for key, n in dimensions.items() if key not in weights or weights[key].ndim != n
    ]:
        raise ValueError(
            f"got weights of Pytorch-UNet in which {', '.join(wrong)} is missing or has another "
            "number of dimensions, expected all tensors of UNet(bilinear=False)"
        )
    # Before 2022 the convolutions had a bias, which the batch norm after them subtracts again.
    for mean in [key for key in weights if key.endswith((".1.running_mean", ".4.running_mean"))]:
        block, place = mean.removesuffix(".running_mean").rsplit(".", 1)
        if (bias := f"{block}.{int(place) - 1}.bias") in weights:
            weights[mean] = weights[mean] - weights.pop(bias)
    if len(weights["head.bias"]) == 1:
        for key in ("head.weight", "head.bias"):
            weights[key] = torch.cat([torch.zeros_like(weights[key]), weights[key]])
    return weights


def convert(state: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """Make the contents of a checkpoint from a state dict of Pytorch-UNet.

    Args:
        state: names and tensors; `mask_values`, if there, has the value of each class in masks.
        overrides: of data.classes, data.ignore and data.normalization.
        where: names the file in error messages.

    Raises:
        ValueError: if the weights cannot be converted or an override does not fit them.
    """
    if unknown := [text for text in overrides if not text.startswith(_SETTINGS)]:
        raise ValueError(f"got {unknown[0]}, expected only settings of {', '.join(_SETTINGS)}")
    # nn.DataParallel puts a prefix before all names.
    state = {key.removeprefix("module."): value for key, value in state.items()}
    mask_values = state.pop("mask_values", None)
    try:
        weights = convert_weights(state)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    keys = _level_keys(sum(key.endswith(".up.weight") for key in weights))
    in_channels, num_classes = weights["encoder.stem.0.weight"].shape[1], len(weights["head.bias"])
    config = config_from_dict(
        {
            "name": "Pytorch-UNet",
            "data": {
                "root": "unknown",
                "classes": _classes(mask_values, num_classes),
                "normalization": {"mean": [0.0] * in_channels, "std": [1.0] * in_channels},
                "validation": {"stems": "unknown"},
            },
            "model": {
                "in_channels": in_channels,
                "widths": [len(weights[key]) for key in keys],
                "norm": "batch",
                "padding": "same",
            },
            "train": {"epochs": 1},  # unknown, too
        },
        overrides,
        where,
    )
    if len(config.data.classes) != num_classes:
        raise ValueError(
            f"{where}: data.classes: got {', '.join(config.data.classes)}, expected {num_classes} "
            "classes, one for each output of the network (two for a single output)"
        )
    if config.data.normalization == "dataset":
        raise ValueError(
            f"{where}: data.normalization: got dataset, expected image, percentiles or a mean and "
            "std: the file comes without a data set"
        )
    try:
        build_network(config, torch.device("cpu")).load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{where}: the weights do not fit the network: {error}") from None
    as_they_are = Normalization(mean=[0.0] * in_channels, std=[1.0] * in_channels)
    return {
        "config": config_to_dict(config),
        "normalization": (build_normalization(config) or as_they_are).to_dict(),
        "image_range": None,
        "val_stems": [],
        "palette": None,
        "model": weights,
    }


def _level_keys(depth: int) -> list[str]:
    """Return the key of each level's first convolution; its outputs are the level's width."""
    return ["encoder.stem.0.weight", *(f"encoder.backbone.{i}.conv.0.weight" for i in range(depth))]


def _classes(mask_values: Any, count: int) -> dict[str, Any]:
    match mask_values:
        case None:
            values: list[Any] = list(range(count))
        case [*numbers] if len(numbers) == count and all(isinstance(one, int) for one in numbers):
            values = [int(number) for number in numbers]  # False and True for masks of one bit
        case [*colours] if len(colours) == count and all(map(_is_colour, colours)):
            values = colours
        case _:  # a text, which the config refuses until data.classes is set
            values = [f"mask_values {reprlib.repr(mask_values)}"] * count
    return {str(i): value for i, value in enumerate(values)}


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(one in range(256) for one in value)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a file and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights", type=Path, metavar="FILE", help="state dict of Pytorch-UNet")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help=f"settings of {', '.join(_SETTINGS)}"
    )
    arguments = parser.parse_intermixed_args(argv)
    path, out = arguments.weights, arguments.out
    try:
        if out.exists() and not arguments.overwrite:
            raise FileExistsError(f"{out}: exists; pass --overwrite to replace it, or another -o")
        state = load_torch_file(path)
        if not isinstance(state, Mapping):
            raise ValueError(f"{path}: is not a state dict of Pytorch-UNet")
        contents = convert(state, arguments.settings, str(path))
        out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(out, contents)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    classes = contents["config"]["data"]["classes"]
    named = ", ".join(f"{one['name']} {one['value']}" for one in classes)
    print(f"wrote {out}; mask values: {named}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
