"""What a checkpoint is: its config and classes, its scores, what it sees and what it costs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from unet.build import build_network
from unet.checkpoint import load_checkpoint
from unet.config.schema import Config, tile_overlap, tiles_blend
from unet.config.values import config_to_dict
from unet.inference.costs import multiply_adds, prediction_memory, step_memory
from unet.inference.predictor import load_model
from unet.metrics.monitor import best_row
from unet.models.fuse import fuse_batch_norm
from unet.models.losses import SegmentationLoss
from unet.models.receptive_field import receptive_field
from unet.models.unet import UNet
from unet.runtime.device import pick_device, pick_dtype

_COLUMNS = 80
_INDENT = 20


def describe_checkpoint(
    path: Path, size: tuple[int, int] | None = None, overrides: Sequence[str] = ()
) -> str:
    """Describe a checkpoint: first its config as YAML, then the rest, within 80 columns.

    The memory of training is weights, what the optimizer and an average of the weights keep, and
    what a step makes: activations saved for the backward pass, and gradients. That of prediction is
    weights and what a batch of tiles makes. Both without torch itself and the workspace of its
    convolutions: widths 32 to 256 were seen to take 1.15 times as much in a step on 4 x 192 x 192
    pixels on a CPU, 1.34 times as much to predict 512 x 512.

    Args:
        path: a best.pt or last.pt.
        size: (H, W) of the image to count for; None for the training crop (without the context of
            model.padding valid), or 512 x 512.
        overrides: as `load_model`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, an override does not fit it, or size is not positive.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"info: got a size of {size[0]} x {size[1]}, expected at least 1 x 1")
    config = load_model(path, "cpu", overrides).config
    contents, shown = load_checkpoint(path), config_to_dict(config)
    scores = _scores(contents.get("progress", {}).get("history", []), config)
    net, crop = build_network(config, torch.device("meta")), config.augment.crop
    if crop is not None and size is None:
        size = (crop[0] - 2 * net.context, crop[1] - 2 * net.context)
    size = size or (512, 512)
    parts = [
        yaml.dump(
            shown,
            Dumper=_InlineLists,
            sort_keys=False,
            allow_unicode=True,
            width=_COLUMNS,
        ),
        _row("checkpoint", str(path)),
        *_rows("classes", [f"{i}  {text}" for i, text in enumerate(_classes(config))]),
        *_rows("scores", scores),
        _row("parameters", f"{sum(p.numel() for p in net.parameters()):,}"),
        _row("multiply-adds", f"{_in_words(multiply_adds(net, size))} at {_sides(size)}"),
        _row("receptive field", _receptive_field(config)),
        _row("training memory", _training_memory(net, config, size)),
        _row("prediction memory", _prediction_memory(net, config, size)),
        _row("", "both without torch itself and the workspace of its convolutions"),
    ]
    return "\n".join(parts)


class _InlineLists(yaml.SafeDumper):
    """Writes lists in brackets, one to a line."""


_InlineLists.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def _row(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=f"{label:<{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rows(label: str, texts: Sequence[str]) -> list[str]:
    return [_row("" if i else label, text) for i, text in enumerate(texts)]


def _classes(config: Config) -> list[str]:
    return [
        f"{one['name']}: mask value {one['value']}"
        for one in config_to_dict(config)["data"]["classes"]
    ]


def _scores(history: Sequence[dict[str, Any]], config: Config) -> list[str]:
    if not history:
        return ["none: the file was written before a validation"]
    best = best_row(history, config.train.monitor)
    texts = []
    for which, row in (("best", best), ("last", history[-1])):
        texts.append(
            f"{which}: epoch {row['epoch']} of {config.train.epochs}, mean IoU "
            f"{row['mean_iou']:.4f}, mean Dice {row['mean_dice']:.4f}, pixel accuracy "
            f"{row['pixel_accuracy']:.4f}"
        )
        texts.append(
            "IoU " + ", ".join(f"{name} {row[f'iou_{name}']:.4f}" for name in config.data.classes)
        )
    return texts


def _receptive_field(config: Config) -> str:
    model, encoder = config.model, config.model.encoder
    field = receptive_field(encoder, len(model.widths), model.upsampling)
    if field is None:
        text = f"the whole image, by squeeze-and-excitation of {encoder}"
    else:
        side, radius = field
        text = f"{_sides((side, side))} at most, up to {radius} to one side"
        if model.norm in ("group", "instance"):
            text += f"; by the statistics of norm {model.norm}, the whole image"
    if encoder != "none":
        how = "blend" if tiles_blend(config) else "are exact"
        text += f"; tiles {how} over {tile_overlap(config)} pixels"
        if how == "blend" and (exact := model.geometry.exact_overlap) is not None:
            text += f" (exact from {exact})"
    return text


def _training_memory(net: UNet, config: Config, size: tuple[int, int]) -> str:
    crop, train = config.augment.crop or _input_size(net, size), config.train
    dtype = _dtype(config)
    loss_function = SegmentationLoss(config.loss.cross_entropy, config.loss.dice)
    step = step_memory(net, loss_function, (train.batch_size, *crop), dtype)
    weights = _num_bytes(net)
    kept = weights * ({"adamw": 2, "sgd": 1}[config.optimizer.name] + (train.ema_decay is not None))
    return (
        f"about {_memory(weights + kept + step)}: weights {_memory(weights)}, "
        f"{config.optimizer.name}{' and average' if train.ema_decay is not None else ''} "
        f"{_memory(kept)}, activations and gradients {_memory(step)} for batches of "
        f"{train.batch_size} x {_sides(crop)} in {str(dtype).removeprefix('torch.')}"
    )


def _prediction_memory(net: UNet, config: Config, size: tuple[int, int]) -> str:
    tiling, dtype = config.tiling, _dtype(config)
    whole = _input_size(net, size)
    tile = (min(whole[0], tiling.size[0]), min(whole[1], tiling.size[1]))
    tile = _input_size(net, (tile[0] - 2 * net.context, tile[1] - 2 * net.context))
    count = tiling.batch_size if tile != whole else 1
    weights = _num_bytes(net)
    made = prediction_memory(fuse_batch_norm(net), (count, *tile), dtype)
    return (
        f"about {_memory(weights + made)}: weights {_memory(weights)}, activations "
        f"{_memory(made)} for {count} x {_sides(tile)}"
        + (", a batch of tiles; image and logits besides" if tile != whole else "")
    )


def _input_size(net: UNet, size: tuple[int, int]) -> tuple[int, int]:
    """What goes through the network for an image."""
    height, width = net.mirror_context(torch.empty(size, device="meta")).shape
    return height, width


def _dtype(config: Config) -> torch.dtype:
    """What is computed in; the config's device need not be here."""
    name = config.train.device
    device = pick_device(name) if name == "auto" else torch.device(name)
    return pick_dtype(config.train.precision, device)


def _num_bytes(net: UNet) -> int:
    return sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _in_words(number: int) -> str:
    power = min((len(str(number)) - 1) // 3, 4)
    return (
        f"{number / 1000**power:.4g}{('', ' thousand', ' million', ' billion', ' trillion')[power]}"
    )


def _memory(num_bytes: int) -> str:
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f} MiB"
