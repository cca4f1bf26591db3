"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1, with padded convolutions.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from unet.conv_transpose import ConvTranspose2d
from unet.reach import factor, margin

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
    """Double the image by kernel times pixel, put the skip beside it, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.up = ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = DoubleConv(2 * out_channels, out_channels, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Image features (N, C, H, W) and skip (N, K, 2H, 2W) -> (N, K, 2H, 2W)."""
        x = torch.cat([skip, self.up(x)], dim=1)
        for layer in self.conv:  # one by one, so that the first convolution's input goes after it
            x = layer(x)
        return x


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

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        widths: channels of each level from the full image down; each further level halves it.
        norm: batch, group (of 8, or as many up to 8 as divide the width), instance, or none.
        downsampling: max_pool, or conv: a 2 x 2 convolution with stride 2.
        recompute: whether training keeps only what enters each level, and computes the rest again
            in the backward pass.

    Raises:
        ValueError: if a number is not positive, or norm or downsampling is none of these.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, *widths, len(widths)) < 1:
            raise ValueError(
                f"UNet: got in_channels {in_channels}, num_classes {num_classes}, widths "
                f"{tuple(widths)}, expected positive numbers and at least one width"
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.recompute = recompute
        # Sizes that the levels can halve are multiples of factor. So many pixels beside an edge on
        # that grid may depend on what lies beyond it; with group and instance norm all do.
        self.factor, self.margin = factor(len(widths)), margin(len(widths))
        levels = list(pairwise(widths))
        self.stem = DoubleConv(in_channels, widths[0], norm)
        self.encoder = nn.ModuleList(
            Down(shallow, deep, norm, downsampling) for shallow, deep in levels
        )
        self.decoder = nn.ModuleList(Up(deep, shallow, norm) for shallow, deep in reversed(levels))
        self.head = nn.Conv2d(widths[0], num_classes, 1)

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
        x = self._level(self.stem, x)
        skips = []
        for down in self.encoder:
            skips.append(x)
            x = self._level(down, x)
        for up in self.decoder:
            x = self._level(up, x, skips.pop())
        logits: Tensor = self.head(x)
        return logits

    def _level(self, level: nn.Module, *inputs: Tensor) -> Tensor:
        if self.recompute and self.training:
            out: Tensor = checkpoint(
                level,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_as_they_are(level)),
            )
        else:
            out = level(*inputs)
        return out


def fold_batch_norm(net: UNet) -> UNet:
    """Copy a network for prediction, each batch norm folded into the convolution before it.

    What it computes stays the same to rounding. Other norms, which depend on the image, stay.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    for block in [part for part in folded.modules() if isinstance(part, DoubleConv)]:
        for i in (0, 3):
            conv, norm = block[i], block[i + 1]
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(conv, nn.Conv2d)
                block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded
