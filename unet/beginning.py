"""The weights that a network begins with; those of others as a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unet.check import listed
from unet.checkpoint import (
    SegmentationModel,
    build_net,
    checked_contents,
    read_safely,
    save_checkpoint,
)
from unet.config import Config, FixedNormalizationConfig
from unet.data import Normalization
from unet.model import UNet
from unet.pytorch_unet import FORMAT, is_pytorch_unet, to_checkpoint


def load_beginning(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or a state dict of Pytorch-UNet as one: its model and parts of its config.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither.
    """
    contents = read_safely(path)
    if not is_pytorch_unet(contents):
        return checked_contents(path, contents)
    try:
        return to_checkpoint(contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def begin_with(net: UNet, contents: dict[str, Any], path: str, names: Sequence[str]) -> str:
    """Take over the weights of another model; of another number of classes, but the head's.

    Args:
        net: to be changed.
        contents: of `load_beginning`.
        path: of the file, for the messages.
        names: of the classes.

    Returns:
        What was done, in words.

    Raises:
        ValueError: if the weights do not fit.
    """
    weights, own = contents["model"], net.state_dict()
    theirs = list(contents["config"]["data"]["classes"])
    said = f"taking the weights of {path}"
    if len(theirs) != len(names):
        weights = {key: own[key] if key.startswith("head.") else w for key, w in weights.items()}
        said += f", but not those of the head: it has {len(theirs)} classes, here are {len(names)}"
    elif theirs != list(names):
        said += f"; its classes {', '.join(theirs)} become {', '.join(names)}, in this order"
    other = [
        f"{key} {' x '.join(map(str, weights[key].shape)) if key in weights else 'missing'}"
        for key in own
        if key not in weights or weights[key].shape != own[key].shape
    ] + [f"{key} besides" for key in weights if key not in own]
    if other:
        model = contents["config"]["model"].items()
        settings = " ".join(f"model.{key}={value}".replace(" ", "") for key, value in model)
        raise ValueError(
            f"{path}: the weights do not fit this config's model; set it as there, {settings}:\n"
            f"{listed(other, 3)}"
        )
    net.load_state_dict(weights)
    return said


def convert(path: Path, config: Config, out: Path, overwrite: bool = False) -> str:
    """Write a checkpoint of weights of Pytorch-UNet, to predict with as with any other.

    Args:
        path: the weights.
        config: what they do not know: what their classes mean, and how images are normalised; auto
            is as Pytorch-UNet does, images from 0 to 1 as they are.
        out: the checkpoint.
        overwrite: whether to replace it if it is there.

    Returns:
        What was done, in words.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if there are no weights.
        ValueError: if they are others, or do not fit the config.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: exists; pass --overwrite to replace it, or another -o FILE")
    if out.suffix != ".pt":
        raise ValueError(f"{out}: expected a file that ends in .pt")
    contents = load_beginning(path)
    if contents["format"] != FORMAT:
        raise ValueError(f"{path}: is a checkpoint of unet already")
    names, theirs = list(config.data.classes), contents["config"]["data"]["classes"]
    if len(names) != len(theirs):
        raise ValueError(
            f"data.classes: got {', '.join(names)}, expected {len(theirs)} classes, as {path} has"
        )
    if config.model.padding == "valid":
        raise ValueError("model.padding: got valid, expected same, as Pytorch-UNet is padded")
    match config.data.normalization:
        case FixedNormalizationConfig(mean=mean, std=std):
            normalization = Normalization(mean=mean, std=std)
        case "auto":
            normalization = Normalization(**contents["normalization"])
        case "dataset":
            raise ValueError(
                "data.normalization: got dataset, expected auto, image, percentiles or numbers: "
                "these weights come without a data set"
            )
        case method:
            normalization = Normalization(method=method)
    net = build_net(config, torch.device("cpu"))
    said = begin_with(net, contents, str(path), names)
    model = SegmentationModel(
        net=net,
        config=config,
        normalization=normalization,
        val_stems=(),
        palette=None,
        device=torch.device("cpu"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, model, {})
    return said
