"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1; convolutions are padded,
or with padding valid those of the paper.
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
from unet.reach import context, factor, margin, unpadded_side

Norm = Literal["batch", "group", "instance", "none"]
Downsampling = Literal["max_pool", "conv"]
Padding = Literal["same", "valid"]


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


def centre_crop(maps: Tensor, like: Tensor) -> Tensor:
    """Cut the middle out of maps (..., H, W), of the height and width of others (..., h, w)."""
    height, width = like.shape[-2:]
    top, left = (maps.shape[-2] - height) // 2, (maps.shape[-1] - width) // 2
    return maps[..., top : top + height, left : left + width]


def mirrored(places: Tensor, side: int) -> Tensor:
    """Return the places from 0 to side - 1 that stand for any, mirrored as often as it takes."""
    # A tensor, as torch.onnx has no remainder by a number that is only known later.
    places = places % torch.full_like(places, 2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, norm, ReLU. (N, C, H, W) -> (N, K, H, W).

    With padding valid the convolutions lose a pixel on each side: (N, K, H - 4, W - 4).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        padding: Padding = "same",
    ) -> None:
        layers: list[nn.Module] = []
        around = 1 if padding == "same" else 0
        for channels in (in_channels, out_channels):
            # A norm subtracts the mean, and a bias with it.
            conv = nn.Conv2d(channels, out_channels, 3, padding=around, bias=norm == "none")
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
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        self.halve = _halve(downsampling, in_channels)
        self.conv = DoubleConv(in_channels, out_channels, norm, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) with H and W even -> (N, K, H / 2, W / 2)."""
        out: Tensor = self.conv(self.halve(x))
        return out


class Up(nn.Module):
    """Double the image by kernel times pixel, put the skip beside it, then DoubleConv."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        self.up = ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = DoubleConv(2 * out_channels, out_channels, norm, padding)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Image features (N, C, H, W) and skip (N, K, 2H, 2W) or larger -> (N, K, 2H, 2W)."""
        x = self.up(x)
        x = torch.cat([centre_crop(skip, x), x], dim=1)
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

    With padding valid it is that of the paper: it gives logits only where it sees nothing but
    image, `context` pixels less on each side, 388 x 388 for 572 x 572. `surround` gives an image
    of any size what it takes.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        widths: channels of each level from the full image down; each further level halves it.
        norm: batch, group (of 8, or as many up to 8 as divide the width), instance, or none.
        downsampling: max_pool, or conv: a 2 x 2 convolution with stride 2.
        padding: of the 3 x 3 convolutions: same, by zeros, which keeps the size; or valid, none.
        dropout: probability that a value at the end of the contracting path, which is after each of
            its two deepest levels, is left out in training.
        recompute: whether training keeps only what enters each level, and computes the rest again
            in the backward pass.

    Raises:
        ValueError: if a number is out of its range, or a name is none of these.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        padding: Padding = "same",
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, *widths, len(widths)) < 1:
            raise ValueError(
                f"UNet: got in_channels {in_channels}, num_classes {num_classes}, widths "
                f"{tuple(widths)}, expected positive numbers and at least one width"
            )
        if padding not in get_args(Padding):
            raise ValueError(f"padding: got {padding!r}, expected one of same, valid")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.levels = len(widths)
        self.padding = padding
        self.recompute = recompute
        # Sizes that the levels can halve are multiples of factor. So many pixels beside an edge on
        # that grid may depend on what lies beyond it; with group and instance norm all do.
        self.factor, self.margin = factor(self.levels), margin(self.levels)
        self.context = context(self.levels) if padding == "valid" else 0
        levels = list(pairwise(widths))
        self.stem = DoubleConv(in_channels, widths[0], norm, padding)
        self.encoder = nn.ModuleList(
            Down(shallow, deep, norm, downsampling, padding) for shallow, deep in levels
        )
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.ModuleList(
            Up(deep, shallow, norm, padding) for shallow, deep in reversed(levels)
        )
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, H, W), any H and W -> logits (N, K, H, W).

        With padding valid only an H and W that each level can halve -> `context` less on each side.

        Raises:
            ValueError: if it cannot.
        """
        height, width = image.shape[-2:]
        if self.padding == "valid":
            smallest = unpadded_side(self.levels, 1)
            if any(side < smallest or (side - smallest) % self.factor for side in (height, width)):
                raise ValueError(
                    f"UNet: got an image of {height} x {width} pixels, expected sides of {smallest}"
                    f" plus multiples of {self.factor} with padding valid; UNet.surround makes such"
                )
            return self.on_grid(image)
        # Each level halves evenly, and the deepest has at least 2 x 2 pixels, as norms need.
        bottom, right = (
            max(-side % self.factor, 2 * self.factor - side) for side in (height, width)
        )
        x = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.on_grid(x)[..., :height, :width]

    def surround(self, image: Tensor) -> Tensor:
        """Mirror an image (..., H, W) at its borders, as padding valid needs it; else leave it.

        Its logits begin with those of the image, and end with up to `factor` - 1 besides.
        """
        if self.padding == "valid":
            for axis in (-2, -1):
                side = image.shape[axis]
                places = torch.arange(unpadded_side(self.levels, side), device=image.device)
                image = image.index_select(axis, mirrored(places - self.context, side))
        return image

    def on_grid(self, x: Tensor) -> Tensor:
        """Image of which H and W are 2, 3, ... times `factor` -> logits (N, K, H, W).

        With padding valid as `forward`.
        """
        levels, skips = [self.stem, *self.encoder], []
        for depth, level in enumerate(levels):
            if depth:
                skips.append(x)
            x = self._level(level, x)
            if depth >= len(levels) - 2:
                x = self.dropout(x)
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
