"""The U-Net: an encoder that halves the image, a decoder that doubles it, skips between them.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 1.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from unet.models.blocks import (
    Downsampling,
    Norm,
    Padding,
    Up,
    Upsampling,
    check_option,
    initialize_as_in_paper,
    run_level,
)
from unet.models.encoder_specs import encoder_spec
from unet.models.encoders import BackboneEncoder, UNetEncoder
from unet.models.network import Network
from unet.models.receptive_field import unet_geometry


class UNet(Network):
    """The U-Net for images of any size.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        widths: channels of each level from the full resolution down; with another encoder of the
            decoder's levels, one fewer than the encoder has.
        norm: batch; group (gcd(8, width) groups); instance; or none, with which all weights start
            with the paper's standard deviation. Other encoders keep their own norm.
        downsampling: max_pool, or conv: a 2 x 2 convolution with stride 2.
        upsampling: conv_transpose, or bilinear interpolation after a 1 x 1 convolution.
        padding: same: 3 x 3 convolutions are padded with zeros; or valid: they are unpadded as in
            the paper, so that logits have `context` pixels less on each side, 388 x 388 for
            572 x 572. `mirror_context` pads an image of any size for that.
        dropout: probability of zeroing a value after the two deepest levels of the encoder.
        encoder: none for the U-Net's own, or with random weights a network of torchvision, such as
            resnet34, or of timm, such as timm/resnet10t.
        activation_checkpointing: whether training keeps only the inputs of each level and computes
            its activations again in the backward pass.

    Attributes:
        geometry: sizes that the layers imply; output_stride, margin and context are copies.
        encoder: see `unet.models.encoders`.

    Raises:
        ValueError: if an argument is out of range or does not fit another.
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
        encoder: str = "none",
        activation_checkpointing: bool = False,
    ) -> None:
        if min(in_channels, num_classes, *widths, len(widths)) < 1:
            raise ValueError(
                f"UNet: got in_channels {in_channels}, num_classes {num_classes}, widths "
                f"{tuple(widths)}, expected positive numbers and at least one width"
            )
        check_option("padding", padding, Padding)
        if padding == "valid" and upsampling == "bilinear":
            raise ValueError(
                "UNet: got upsampling bilinear and padding valid, expected padding same"
            )
        if encoder != "none":
            _check_arguments_of(encoder, widths, downsampling, padding, dropout)
        geometry = unet_geometry(encoder, len(widths), norm, upsampling, padding)
        super().__init__(in_channels, num_classes, geometry)
        self.padding = padding
        self.activation_checkpointing = activation_checkpointing
        self.encoder: UNetEncoder | BackboneEncoder
        if encoder == "none":
            self.encoder = UNetEncoder(
                in_channels, widths, norm, downsampling, padding, dropout, activation_checkpointing
            )
        else:
            self.encoder = BackboneEncoder(
                encoder, in_channels, widths[0], norm, activation_checkpointing
            )
        *skips, deeper = self.encoder.channels
        strides = self.encoder.strides
        self.decoder = nn.ModuleList()
        for i in reversed(range(len(skips))):
            stride = strides[i + 1] // strides[i]
            self.decoder.append(Up(deeper, skips[i], widths[i], norm, padding, stride, upsampling))
            deeper = widths[i]
        self.head = nn.Conv2d(widths[0], num_classes, 1)
        if norm == "none":  # then only the weights' size keeps features from growing or vanishing
            own_backbone = [self.encoder.backbone] if encoder == "none" else []
            for module in (self.encoder.stem, self.decoder, self.head, *own_backbone):
                module.apply(initialize_as_in_paper)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.encoder.frozen:
            self.encoder.backbone.eval()
        return self

    def forward_on_grid(self, x: Tensor) -> Tensor:
        """Compute the network, see `Network`."""
        checkpointing = self.activation_checkpointing and self.training
        features = self.encoder(x)
        x = features.pop()
        for up in self.decoder:
            x = run_level(up, x, features.pop(), checkpointing=checkpointing)
        logits: Tensor = self.head(x)
        return logits


def _check_arguments_of(
    encoder: str, widths: Sequence[int], downsampling: str, padding: str, dropout: float
) -> None:
    """Check the arguments that depend on an encoder."""
    num_levels = len(encoder_spec(encoder).channels)
    if len(widths) != num_levels:
        raise ValueError(
            f"widths: got {tuple(widths)}, expected {num_levels} numbers, one for each level of "
            f"the decoder with encoder {encoder}"
        )
    if (downsampling, padding, dropout) != ("max_pool", "same", 0):
        raise ValueError(
            f"UNet: got downsampling {downsampling}, padding {padding} and dropout {dropout} with "
            f"encoder {encoder}, expected the defaults, as the encoder is complete without them"
        )


def argmax_classes(scores: Tensor) -> Tensor:
    """Logits or probabilities (K, H, W) -> class ids (H, W), uint8; of equal scores the first."""
    # The same as argmax, which on a CPU takes 40 times as long, a tenth of a prediction.
    return scores.max(0).indices.to(torch.uint8)
