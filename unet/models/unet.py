"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1; convolutions are padded,
or with padding valid those of the paper.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Self, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unet.models.blocks import (
    DoubleConv,
    Down,
    Downsampling,
    Norm,
    Padding,
    Up,
    Upsampling,
    _begin_as_the_paper,
    mirrored,
)
from unet.models.encoder_specs import ENCODER_SPECS, Encoder, encoder_levels
from unet.models.receptive_field import strides, unet_geometry


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
    graph: fx.GraphModule = create_feature_extractor(net, list(ENCODER_SPECS[name].nodes))
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
        activation_checkpointing: whether training keeps only the inputs of each level and computes
            its activations again in the backward pass; an encoder of torchvision is one level.

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
        activation_checkpointing: bool = False,
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
        levels = encoder_levels(encoder, len(widths))
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
        self.padding = padding
        self.activation_checkpointing = activation_checkpointing
        self.geometry = unet_geometry(encoder, len(widths), norm, upsampling, padding)
        self.output_stride = self.geometry.output_stride
        self.margin = self.geometry.margin
        self.context = self.geometry.context
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
            channels = (widths[0], *ENCODER_SPECS[encoder].channels)
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
            smallest = self.geometry.input_side(1)
            if any(
                side < smallest or (side - smallest) % self.output_stride
                for side in (height, width)
            ):
                raise ValueError(
                    f"UNet: got an image of {height} x {width} pixels, expected sides of {smallest}"
                    f" plus multiples of {self.output_stride} with padding valid; pad the image "
                    "with UNet.mirror_context"
                )
            return self.forward_on_grid(image)
        # Each level halves evenly, and the deepest has at least 2 x 2 pixels, as norms need.
        bottom, right = (
            max(-side % self.output_stride, 2 * self.output_stride - side)
            for side in (height, width)
        )
        x = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.forward_on_grid(x)[..., :height, :width]

    def mirror_context(self, image: Tensor) -> Tensor:
        """Mirror an image (..., H, W) at its borders, as padding valid needs it; else leave it.

        Its logits begin with those of the image, and end with up to `factor` - 1 besides.
        """
        if self.padding == "valid":
            for axis in (-2, -1):
                side = image.shape[axis]
                places = torch.arange(self.geometry.input_side(side), device=image.device)
                image = image.index_select(axis, mirrored(places - self.context, side))
        return image

    def forward_on_grid(self, x: Tensor) -> Tensor:
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
        if self.activation_checkpointing and self.training:
            return checkpoint(
                level,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _statistics_as_they_are(level)),
            )
        return level(*inputs)


def argmax_classes(scores: Tensor) -> Tensor:
    """Choose a class for every pixel: logits or probabilities (K, H, W) -> ids (H, W), uint8.

    Of several that are even it is the first.
    """
    # The same as argmax, which takes 40 times as long on a CPU, a tenth of a prediction.
    return scores.max(0).indices.to(torch.uint8)
