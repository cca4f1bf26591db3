"""Docstring to be written."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unet.models.conv_transpose import ConvTranspose2d

Norm = Literal["batch", "group", "instance", "none"]


Downsampling = Literal["max_pool", "conv"]


Padding = Literal["same", "valid"]


Upsampling = Literal["conv_transpose", "bilinear"]


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


def _enlarge(upsampling: Upsampling, in_channels: int, out_channels: int, factor: int) -> nn.Module:
    match upsampling:
        case "conv_transpose":
            return ConvTranspose2d(in_channels, out_channels, factor, stride=factor)
        case "bilinear":  # the channels first, which comes to the same and is less work
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1),
                nn.Upsample(scale_factor=factor, mode="bilinear"),
            )
        case _:
            options = ", ".join(get_args(Upsampling))
            raise ValueError(f"upsampling: got {upsampling!r}, expected one of {options}")


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


def _begin_as_the_paper(layer: nn.Module) -> None:
    """Let weights have a standard deviation of sqrt(2 / N), N inputs to an output; no bias."""
    if isinstance(layer, nn.Conv2d | ConvTranspose2d):
        # A pixel of an up-convolution is of one block.
        kernel = 1 if isinstance(layer, ConvTranspose2d) else math.prod(layer.kernel_size)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * kernel)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


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
    """Enlarge the image, put the skip beside it, then DoubleConv.

    Args:
        in_channels: C of the image features.
        skip_channels: S of the skip.
        out_channels: K.
        norm: of the DoubleConv.
        padding: of the DoubleConv.
        factor: by which the image grows.
        upsampling: conv_transpose, kernel times pixel with a kernel of factor x factor; or bilinear
            interpolation after a 1 x 1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        norm: Norm = "batch",
        padding: Padding = "same",
        factor: int = 2,
        upsampling: Upsampling = "conv_transpose",
    ) -> None:
        super().__init__()
        self.up = _enlarge(upsampling, in_channels, out_channels, factor)
        self.conv = DoubleConv(skip_channels + out_channels, out_channels, norm, padding)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Image features (N, C, H, W) and skip (N, S, h, w) -> (N, K, H * factor, W * factor).

        Of a skip with a larger h and w it takes the middle; with padding valid 4 less come out.
        """
        x = self.up(x)
        x = torch.cat([centre_crop(skip, x), x], dim=1)
        for layer in self.conv:  # one by one, so that the first convolution's input goes after it
            x = layer(x)
        return x
