"""The blocks of a U-Net: two convolutions, a step down, a step up."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unet.models.conv_transpose import ConvTranspose2d
from unet.models.group_norm import GroupNorm

Norm = Literal["batch", "group", "instance", "none"]
Downsampling = Literal["max_pool", "conv"]
Padding = Literal["same", "valid"]
Upsampling = Literal["conv_transpose", "bilinear"]


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, norm, ReLU. (N, C, H, W) -> (N, K, H, W).

    With padding valid each convolution loses a pixel on each side: (N, K, H - 4, W - 4).
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norm = "batch", padding: Padding = "same"
    ) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            # A norm subtracts the mean and any bias with it.
            conv = nn.Conv2d(
                channels, out_channels, 3, padding=int(padding == "same"), bias=norm == "none"
            )
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # the paper's sqrt(2 / N)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            layers += [conv, _norm(norm, out_channels), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Down(nn.Module):
    """Halve the image, then DoubleConv. (N, C, H, W) with H and W even -> (N, K, H / 2, W / 2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        self.halve = _downsample(downsampling, in_channels)
        self.conv = DoubleConv(in_channels, out_channels, norm, padding)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.conv(self.halve(x))
        return out


class Up(nn.Module):
    """Upsample by `stride`, concatenate the skip, then DoubleConv."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        padding: Padding = "same",
        stride: int = 2,
        upsampling: Upsampling = "conv_transpose",
    ) -> None:
        super().__init__()
        self.up = _upsample(upsampling, in_channels, out_channels, stride)
        self.conv = DoubleConv(skip_channels + out_channels, out_channels, norm, padding)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features (N, C, H, W) and skip (N, S, h, w) -> (N, K, H * stride, W * stride).

        A larger skip is cropped to its centre. With padding valid H and W are smaller by 4.
        """
        x = self.up(x)
        x = torch.cat([centre_crop(skip, x), x], dim=1)
        for layer in self.conv:  # one by one: frees the first convolution's input after it
            x = layer(x)
        return x


def centre_crop(x: Tensor, like: Tensor) -> Tensor:
    """Crop x (..., H, W) to its centre, to the height and width of `like` (..., h, w)."""
    height, width = like.shape[-2:]
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def mirrored(indices: Tensor, side: int) -> Tensor:
    """Map pixel indices outside of 0 to side - 1 into it by mirroring, repeatedly if necessary."""
    # A tensor: torch.onnx has no remainder by a number that is known only at run time.
    indices = indices % torch.full_like(indices, 2 * side)
    return torch.minimum(indices, 2 * side - 1 - indices)


def initialize_as_in_paper(layer: nn.Module) -> None:
    """Draw weights with standard deviation sqrt(2 / N), N inputs to each output; zero the bias.

    Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, section 3.
    """
    if isinstance(layer, nn.Conv2d | ConvTranspose2d):
        # An output pixel of the up-convolution depends on one input pixel.
        kernel = 1 if isinstance(layer, ConvTranspose2d) else math.prod(layer.kernel_size)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * kernel)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def run_level(level: nn.Module, *inputs: Tensor, checkpointing: bool = False) -> Any:
    """Call a level; with checkpointing, compute its activations again in the backward pass."""
    if not checkpointing:
        return level(*inputs)
    return checkpoint(
        level,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _frozen_statistics(level)),
    )


@contextmanager
def _frozen_statistics(level: nn.Module) -> Iterator[None]:
    """Keep batch norm from counting a batch twice."""
    norms: list[Any] = [m for m in level.modules() if getattr(m, "track_running_stats", False)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def check_option(name: str, value: str, options: Any) -> None:
    """Raise a ValueError unless the value is one of a Literal's options."""
    if value not in get_args(options):
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(get_args(options))}")


def _norm(norm: Norm, channels: int) -> nn.Module:
    check_option("norm", norm, Norm)
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return GroupNorm(math.gcd(8, channels), channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        case "none":
            return nn.Identity()


def _downsample(downsampling: Downsampling, channels: int) -> nn.Module:
    check_option("downsampling", downsampling, Downsampling)
    if downsampling == "max_pool":
        return nn.MaxPool2d(2)
    return nn.Conv2d(channels, channels, 2, stride=2)


def _upsample(
    upsampling: Upsampling, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    check_option("upsampling", upsampling, Upsampling)
    if upsampling == "conv_transpose":
        return ConvTranspose2d(in_channels, out_channels, stride, stride=stride)
    # The convolution comes first: the result is the same, for less work.
    conv = nn.Conv2d(in_channels, out_channels, 1)
    return nn.Sequential(conv, nn.Upsample(scale_factor=stride, mode="bilinear"))
