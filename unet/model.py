"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1, with padded convolutions.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from unet.conv_transpose import ConvTranspose2d
from unet.encoders import BACKBONES, Encoder, levels_of
from unet.reach import factor, margin, strides

Norm = Literal["batch", "group", "instance", "none"]
Downsampling = Literal["max_pool", "conv"]


def _norm(norm: Norm, channels: int) -> nn.Module:
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        case "none":
            return nn.Identity()
        case _:
            raise ValueError(f"norm: got {norm!r}, expected one of {', '.join(get_args(Norm))}")


def _halve(downsampling: Downsampling, channels: int) -> nn.Module:
    match downsampling:
        case "max_pool":
            return nn.MaxPool2d(2)
        case "conv":
            return nn.Conv2d(channels, channels, 2, stride=2)
        case _:
            options = ", ".join(get_args(Downsampling))
            raise ValueError(f"downsampling: got {downsampling!r}, expected one of {options}")


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution that keeps the size, norm, ReLU. (N, C, H, W) -> (N, K, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "batch") -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            # A norm subtracts the mean, and a bias with it.
            conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=norm == "none")
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # the paper's sqrt(2 / N)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            layers += [conv, _norm(norm, out_channels), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Down(nn.Module):
    """Halve the image, then DoubleConv. (N, C, H, W) -> (N, K, H / 2, W / 2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
    ) -> None:
        super().__init__()
        self.halve = _halve(downsampling, in_channels)
        self.conv = DoubleConv(in_channels, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) with H and W even -> (N, K, H / 2, W / 2)."""
        out: Tensor = self.conv(self.halve(x))
        return out


class Up(nn.Module):
    """Enlarge the image by kernel times pixel, put the skip beside it, then DoubleConv.

    Args:
        in_channels: C of the image features.
        skip_channels: S of the skip.
        out_channels: K.
        norm: of the DoubleConv.
        factor: by which the image grows: kernel and stride of the up-convolution.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        factor: int = 2,
    ) -> None:
        super().__init__()
        self.up = ConvTranspose2d(in_channels, out_channels, factor, stride=factor)
        self.conv = DoubleConv(skip_channels + out_channels, out_channels, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Image features (N, C, H, W) and skip (N, S, H * factor, W * factor) -> (N, K, ...)."""
        out: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return out


def backbone(name: Encoder, in_channels: int) -> fx.GraphModule:
    """Cut a network of torchvision into the levels of an encoder, with random weights.

    Returns:
        A module: image (N, C, H, W), sides multiples of its factor -> the output of each level.
    """
    net = get_model(name, weights=None)
    if in_channels != 3:
        conv = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        conv.in_channels = in_channels
        weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size)
        conv.weight = nn.Parameter(nn.init.kaiming_normal_(weight, nonlinearity="relu"))
    graph: fx.GraphModule = create_feature_extractor(net, list(BACKBONES[name].nodes))
    return graph


@contextmanager
def _statistics_as_they_are(level: nn.Module) -> Iterator[None]:
    """Keep batch norm from counting a batch twice."""
    norms: list[Any] = [
        part for part in level.modules() if getattr(part, "track_running_stats", False)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class UNet(nn.Module):
    """The U-Net for images of any size.

    With an encoder of torchvision, the stem still looks at the full image, which such an encoder
    never does: what is finer than its first stride, 2 or 4 pixels, reaches the head by that skip.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        widths: channels of each level from the full image down; each further level halves it. With
            an encoder of torchvision those of the decoder, one for each level but the deepest.
        norm: batch, group (of 8, or as many up to 8 as divide the width), instance, or none; an
            encoder of torchvision keeps its own.
        downsampling: max_pool, or conv: a 2 x 2 convolution with stride 2; of none but `encoder`
            none.
        encoder: none for the U-Net's own, or the name of a network of torchvision. It begins with
            random weights.
        recompute: whether training keeps only what enters each level, and computes the rest again
            in the backward pass; an encoder of torchvision is one level.

    Raises:
        ValueError: if a number is not positive, widths are not as many as the encoder has levels,
            or norm, downsampling or encoder is none of these.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        encoder: Encoder = "none",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, *widths, len(widths)) < 1:
            raise ValueError(
                f"UNet: got in_channels {in_channels}, num_classes {num_classes}, widths "
                f"{tuple(widths)}, expected positive numbers and at least one width"
            )
        if encoder not in get_args(Encoder):
            options = ", ".join(get_args(Encoder))
            raise ValueError(f"encoder: got {encoder!r}, expected one of {options}")
        levels = levels_of(encoder, len(widths))
        if encoder != "none" and len(widths) != len(levels) - 1:
            raise ValueError(
                f"widths: got {tuple(widths)}, expected {len(levels) - 1} numbers: the decoder has "
                f"so many levels with encoder {encoder}"
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.recompute = recompute
        self.encoder_frozen = False
        """Whether the encoder neither learns nor, in training, changes its statistics."""
        # Sizes that the levels can divide are multiples of factor. So many pixels beside an edge on
        # that grid may depend on what lies beyond it; with group and instance norm all do, as
        # with encoders that see all.
        self.factor, self.margin = factor(levels), margin(levels)
        self.stem = DoubleConv(in_channels, widths[0], norm)
        self.encoder: nn.ModuleList | fx.GraphModule
        if encoder == "none":
            self.encoder = nn.ModuleList(
                Down(shallow, deep, norm, downsampling) for shallow, deep in pairwise(widths)
            )
            channels, widths = widths, widths[:-1]
        else:
            self.encoder = backbone(encoder, in_channels)
            channels = (widths[0], *BACKBONES[encoder].channels)
        ups = zip(
            [*widths, channels[-1]][1:], channels[:-1], widths, strides(levels)[1:], strict=True
        )
        self.decoder = nn.ModuleList(
            Up(deep, skip, shallow, norm, stride) for deep, skip, shallow, stride in [*ups][::-1]
        )
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    def train(self, mode: bool = True) -> Self:
        """Set what training and prediction do differently; a frozen encoder is never trained."""
        self.training = mode
        for part in self.children():
            part.train(mode and not (self.encoder_frozen and part is self.encoder))
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, H, W), any H and W -> logits (N, K, H, W)."""
        height, width = image.shape[-2:]
        # Each level halves evenly, and the deepest has at least 2 x 2 pixels, as norms need.
        bottom, right = (
            max(-side % self.factor, 2 * self.factor - side) for side in (height, width)
        )
        x = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.on_grid(x)[..., :height, :width]

    def on_grid(self, x: Tensor) -> Tensor:
        """Image of which H and W are 2, 3, ... times `factor` -> logits (N, K, H, W)."""
        features = [self._level(self.stem, x)]
        if isinstance(self.encoder, nn.ModuleList):
            for down in self.encoder:
                features.append(self._level(down, features[-1]))
        else:
            with torch.no_grad() if self.encoder_frozen else nullcontext():
                features += self._level(self.encoder, x).values()
        x = features.pop()
        for up in self.decoder:
            x = self._level(up, x, features.pop())
        logits: Tensor = self.head(x)
        return logits

    def _level(self, level: nn.Module, *inputs: Tensor) -> Any:
        if self.recompute and self.training:
            return checkpoint(
                level,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_as_they_are(level)),
            )
        return level(*inputs)


def fold_batch_norm(net: UNet) -> UNet:
    """Copy a network for prediction, each batch norm folded into the convolution before it.

    What it computes stays the same to rounding. Other norms, which depend on the image, stay.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    for block in [*folded.modules()]:
        if not isinstance(block, nn.Sequential) or type(block).forward is not nn.Sequential.forward:
            continue
        for i, (conv, norm) in enumerate(pairwise([*block])):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    if isinstance(folded.encoder, fx.GraphModule):
        _fold_graph(folded.encoder)
    return folded


def _fold_graph(net: fx.GraphModule) -> None:
    """Fold each batch norm that a convolution alone feeds, and nothing else sees."""
    parts = dict(net.named_modules())
    calls = [node for node in net.graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before, norm = node.args[0], parts[node.target]
        conv = parts.get(before.target) if before in calls else None
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(conv, nn.Conv2d)
            and len(before.users) == times[before.target] == times[node.target] == 1
        ):
            net.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            net.set_submodule(node.target, nn.Identity())
