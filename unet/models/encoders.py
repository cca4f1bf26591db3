"""The encoders: image -> list of features, from the full resolution down.

All encoders have the same attributes:
    channels, strides: of each feature map.
    stem: the convolutions at the full resolution.
    backbone: all levels below.
    frozen: whether the backbone has no gradients. `UNet.train` then keeps it in evaluation mode.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise
from operator import mul

import torch
from torch import Tensor, nn

from unet.models.blocks import DoubleConv, Down, Downsampling, Norm, Padding, run_level
from unet.models.encoder_specs import TIMM, encoder_levels, encoder_spec
from unet.models.receptive_field import level_strides


class UNetEncoder(nn.Module):
    """The contracting path of the U-Net; arguments as those of `UNet`."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        norm: Norm = "batch",
        downsampling: Downsampling = "max_pool",
        padding: Padding = "same",
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple(2**i for i in range(len(widths)))
        self.activation_checkpointing = activation_checkpointing
        self.frozen = False
        self.stem = DoubleConv(in_channels, widths[0], norm, padding)
        self.backbone = nn.ModuleList(
            Down(shallow, deep, norm, downsampling, padding) for shallow, deep in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (N, C, H, W) -> features (N, channels[i], H / strides[i], W / strides[i])."""
        checkpointing = self.activation_checkpointing and self.training
        features, x = [], image
        for depth, level in enumerate([self.stem, *self.backbone]):
            with torch.no_grad() if self.frozen and depth else nullcontext():
                x = run_level(level, x, checkpointing=checkpointing)
                if depth >= len(self.backbone) - 1:
                    x = self.dropout(x)
            features.append(x)
        return features


class BackboneEncoder(nn.Module):
    """A classification network of torchvision or timm with random weights, next to a stem.

    Such a network divides the image's size by 2 or 4 in its first layer: finer details are only in
    the stem's features. For activation_checkpointing it is one level. Arguments as `UNet`.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        stem_width: int,
        norm: Norm = "batch",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = (stem_width, *encoder_spec(name).channels)
        self.strides = tuple(accumulate(level_strides(encoder_levels(name, 0)), mul))
        self.activation_checkpointing = activation_checkpointing
        self.frozen = False
        self.stem = DoubleConv(in_channels, stem_width, norm)
        self.backbone = build_backbone(name, in_channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """As `UNetEncoder.forward`; H and W are multiples of strides[-1]."""
        checkpointing = self.activation_checkpointing and self.training
        full = run_level(self.stem, image, checkpointing=checkpointing)
        with torch.no_grad() if self.frozen else nullcontext():
            features = run_level(self.backbone, image, checkpointing=checkpointing)
        return [full, *features.values()]


def build_backbone(name: str, in_channels: int) -> nn.Module:
    """Make a network of torchvision or timm that returns a dict of features."""
    # Not at the top: these imports take as long as that of torch, and few runs need them.
    if name.startswith(TIMM):
        from unet.models.timm_backbone import TimmBackbone

        return TimmBackbone(name, in_channels)
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    net = get_model(name, weights=None)
    if in_channels != 3:
        conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        conv.in_channels = in_channels
        weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size)
        conv.weight = nn.Parameter(nn.init.kaiming_normal_(weight, nonlinearity="relu"))
    graph: nn.Module = create_feature_extractor(net, list(encoder_spec(name).nodes))
    return graph
