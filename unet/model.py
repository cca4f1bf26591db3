"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1; convolutions are padded,
or with padding valid those of the paper.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unet.conv_transpose import ConvTranspose2d
from unet.encoders import BACKBONES, Encoder, levels_of
from unet.reach import context, factor, margin, strides, unpadded_side

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


def backbone(name: Encoder, in_channels: int) -> fx.GraphModule:
    """Cut a network of torchvision into the levels of an encoder, with random weights.

    Returns:
        A module: image (N, C, H, W), sides multiples of its factor -> the output of each level.
    """
    # Not above: it takes as long to import as torch itself, and few need it.
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

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

    With padding valid it is that of the paper: it gives logits only where it sees nothing but
    image, `context` pixels less on each side, 388 x 388 for 572 x 572. `surround` gives an image
    of any size what it takes.

    With an encoder of torchvision, the stem still looks at the full image, which such an encoder
    never does: what is finer than its first stride, 2 or 4 pixels, reaches the head by that skip.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        widths: channels of each level from the full image down; each further level halves it. With
            an encoder of torchvision those of the decoder, one for each level but the deepest.
        norm: batch, group (of 8, or as many up to 8 as divide the width), instance, or none, with
            which all weights begin with a standard deviation of sqrt(2 / N), N inputs to each
            output, as in the paper; an encoder of torchvision keeps its own.
        downsampling: max_pool, or conv: a 2 x 2 convolution with stride 2.
        upsampling: conv_transpose, kernel times pixel; or bilinear, after a 1 x 1 convolution.
        padding: of the 3 x 3 convolutions: same, by zeros, which keeps the size; or valid, none,
            with conv_transpose only.
        dropout: probability that a value at the end of the contracting path, which is after each of
            its two deepest levels, is left out in training.
        encoder: none for the U-Net's own, or the name of a network of torchvision, with random
            weights. It has its own downsampling, is padded, and takes no dropout.
        recompute: whether training keeps only what enters each level, and computes the rest again
            in the backward pass; an encoder of torchvision is one level.

    Raises:
        ValueError: if a number is out of its range, a name is none of these, or the encoder does
            not go together with the others.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        upsampling: Upsampling = "conv_transpose",
        padding: Padding = "same",
        dropout: float = 0.0,
        encoder: Encoder = "none",
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
        if padding == "valid" and upsampling == "bilinear":
            raise ValueError(
                "UNet: got upsampling bilinear, expected conv_transpose with padding valid"
            )
        if encoder not in get_args(Encoder):
            options = ", ".join(get_args(Encoder))
            raise ValueError(f"encoder: got {encoder!r}, expected one of {options}")
        levels = levels_of(encoder, len(widths))
        if encoder != "none":
            if len(widths) != len(levels) - 1:
                raise ValueError(
                    f"widths: got {tuple(widths)}, expected {len(levels) - 1} numbers: the decoder "
                    f"has so many levels with encoder {encoder}"
                )
            if (downsampling, padding, dropout) != ("max_pool", "same", 0):
                raise ValueError(
                    f"UNet: got downsampling {downsampling}, padding {padding} and dropout "
                    f"{dropout} with encoder {encoder}, expected them left out"
                )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.levels = levels
        self.padding = padding
        self.recompute = recompute
        # Sizes that the levels can divide are multiples of factor. So many pixels beside an edge on
        # that grid may depend on what lies beyond it; with group and instance norm all do, as
        # with encoders that see all.
        self.factor, self.margin = factor(levels), margin(levels, upsampling == "bilinear")
        self.context = context(levels) if padding == "valid" else 0
        self.encoder_frozen = False
        """Whether the encoder neither learns nor, in training, changes its statistics."""
        self.stem = DoubleConv(in_channels, widths[0], norm, padding)
        self.encoder: nn.ModuleList | fx.GraphModule
        if encoder == "none":
            self.encoder = nn.ModuleList(
                Down(shallow, deep, norm, downsampling, padding)
                for shallow, deep in pairwise(widths)
            )
            channels = tuple(widths)
        else:
            self.encoder = backbone(encoder, in_channels)
            channels = (widths[0], *BACKBONES[encoder].channels)
        self.dropout = nn.Dropout(dropout)
        *skips, deeper = channels
        ups = zip(skips, widths[: len(skips)], strides(levels)[1:], strict=True)
        self.decoder = nn.ModuleList()
        for skip, width, stride in reversed([*ups]):
            self.decoder.append(Up(deeper, skip, width, norm, padding, stride, upsampling))
            deeper = width
        self.head = nn.Conv2d(widths[0], num_classes, 1)
        if norm == "none":  # nothing else keeps features of one size
            own = (self.stem, self.decoder, self.head, *([self.encoder] * (encoder == "none")))
            for part in own:
                part.apply(_begin_as_the_paper)

    def train(self, mode: bool = True) -> Self:
        """Set what training and prediction do differently; a frozen encoder is never trained."""
        self.training = mode
        for part in self.children():
            part.train(mode and not (self.encoder_frozen and part is self.encoder))
        return self

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
        features = self._features(x)
        x = features.pop()
        for up in self.decoder:
            x = self._level(up, x, features.pop())
        logits: Tensor = self.head(x)
        return logits

    def _features(self, x: Tensor) -> list[Tensor]:
        """What each level of the encoder gives, from the full image down."""
        if isinstance(self.encoder, fx.GraphModule):
            full = self._level(self.stem, x)
            with torch.no_grad() if self.encoder_frozen else nullcontext():
                return [full, *self._level(self.encoder, x).values()]
        features, levels = [], [self.stem, *self.encoder]
        for depth, level in enumerate(levels):
            x = self._level(level, x)
            if depth >= len(levels) - 2:
                x = self.dropout(x)
            features.append(x)
        return features

    def _level(self, level: nn.Module, *inputs: Tensor) -> Any:
        if self.recompute and self.training:
            return checkpoint(
                level,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_as_they_are(level)),
            )
        return level(*inputs)


def most_probable(scores: Tensor) -> Tensor:
    """Choose a class for every pixel: logits or probabilities (K, H, W) -> ids (H, W), uint8.

    Of several that are even it is the first.
    """
    # The same as argmax, which takes 40 times as long on a CPU, a tenth of a prediction.
    return scores.max(0).indices.to(torch.uint8)
