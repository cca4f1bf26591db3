"""Describe a checkpoint: config, classes, scores, size and receptive field of the network."""

import copy
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from unet.build import build_network
from unet.checkpoint import restore_calibration
from unet.config.loader import restore_config
from unet.config.schema import Config, tile_overlap, tiles_blend
from unet.config.values import config_to_dict
from unet.inference.loading import load_contents
from unet.metrics.monitor import best_row
from unet.models.encoder_specs import TIMM
from unet.models.network import Network
from unet.models.receptive_field import receptive_field

_COLUMNS = 80
_INDENT = 20


def describe_checkpoint(
    path: Path, size: tuple[int, int] | None = None, overrides: Sequence[str] = ()
) -> str:
    """Describe a checkpoint within 80 columns: first its scores and costs, then its config as YAML.

    Args:
        path: a best.pt or last.pt, or an exported ONNX file.
        size: (H, W) of the image to count multiply-adds for; None for the training crop, without
            the context of an unpadded network, or 512 x 512.
        overrides: as in `load_model`, with the same errors.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size: got {size[0]} x {size[1]}, expected at least 1 x 1")
    contents = load_contents(path)
    config = restore_config(contents["config"], overrides, str(path))
    shown, calibration = config_to_dict(config), restore_calibration(contents)
    if size is None:
        context = config.model.geometry.context
        height, width = config.augment.crop or (512 + 2 * context, 512 + 2 * context)
        size = (height - 2 * context, width - 2 * context)
    classes = [
        f"{i}  {one['name']}: mask value {one['value']}"
        for i, one in enumerate(shown["data"]["classes"])
    ]
    settings = yaml.dump(
        shown, Dumper=_InlineLists, sort_keys=False, allow_unicode=True, width=_COLUMNS
    )
    rows = [
        _row("checkpoint", str(path)),
        _row("classes", *classes),
        _row("scores", *_describe_scores(contents.get("progress", {}).get("history", []), config)),
        *([_row("calibration", *str(calibration).splitlines())] if calibration else []),
        *_describe_network(config, size),
    ]
    return "\n".join([*rows, "", settings.rstrip()])


def _describe_network(config: Config, size: tuple[int, int]) -> list[str]:
    if config.custom.network is not None:  # not in the file
        return [_row("network", f"{config.custom.network}, a network of your own")]
    net = build_network(config, torch.device("meta"))
    return [
        _row("parameters", f"{sum(p.numel() for p in net.parameters()):,}"),
        _row("multiply-adds", f"{_round(multiply_adds(net, size))} for {_pixels(size)}"),
        _row("receptive field", _describe_receptive_field(config)),
    ]


def multiply_adds(net: Network, size: tuple[int, int]) -> int:
    """Count the multiply-adds of all convolutions for one image (H, W), including its padding.

    Nothing is computed: tensors on torch's meta device have shapes, but no values.
    """
    net = copy.deepcopy(net).to("meta").eval()
    image = torch.empty(1, net.in_channels, *size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(net.mirror_context(image))
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two


class _InlineLists(yaml.SafeDumper):
    """Writes a list on one line."""


_InlineLists.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def _row(label: str, *texts: str) -> str:
    lines = [
        textwrap.fill(
            text,
            _COLUMNS,
            initial_indent=f"{'' if i else label:<{_INDENT}}",
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for i, text in enumerate(texts)
    ]
    return "\n".join(lines)


def _describe_scores(history: Sequence[dict[str, Any]], config: Config) -> list[str]:
    if not history:
        return ["none: there was no validation before the file was written"]
    best = best_row(history, config.train.monitor)
    if config.train.monitor not in best:
        return ["none: all pairs were trained on"]
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


def _describe_receptive_field(config: Config) -> str:
    model, encoder = config.model, config.model.encoder
    field = receptive_field(encoder, len(model.widths), model.upsampling)
    if field is None:
        text = f"the whole image, by squeeze-and-excitation of {encoder}"
        if encoder.startswith(TIMM):
            text = f"not known for {encoder}, at most the whole image"
    else:
        side, distance = field
        text = f"at most {_pixels((side, side))}, up to {distance} to one side"
        if model.norm in ("group", "instance"):
            text += f"; the whole image for the statistics of norm {model.norm}"
    if encoder != "none":
        how = "are blended" if tiles_blend(config) else "are exact"
        text += f"; tiles {how} over {tile_overlap(config)} pixels"
        exact = model.geometry.exact_overlap
        if tiles_blend(config) and exact is not None:
            text += f" (exact from {exact})"
    return text


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _round(number: int) -> str:
    power = min((len(str(number)) - 1) // 3, 4)
    name = ("", " thousand", " million", " billion", " trillion")[power]
    return f"{number / 1000**power:.4g}{name}"
