"""The encoders: the U-Net's own, and classification networks of torchvision. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from unet.models.receptive_field import Level, own_levels

Encoder = Literal[
    "none",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "convnext_tiny",
    "convnext_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mobilenet_v3_large",
]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A classification network of torchvision as an encoder.

    Args:
        nodes: the modules whose outputs are its levels, by their names there.
        channels: of each level.
        levels: the layers of each; where it sees all, only those that make the image smaller.
        sees_all: whether squeeze-and-excitation, which takes means over the whole image, lets every
            pixel depend on all others.
    """

    nodes: tuple[str, ...]
    channels: tuple[int, ...]
    levels: tuple[Level, ...]
    sees_all: bool = False


def _resnet(blocks: tuple[int, int, int, int], widest: int, convolutions: int) -> Backbone:
    """He et al. 2015, arXiv 1512.03385: each block has so many 3 x 3 convolutions."""
    first, *others = (count * convolutions for count in blocks)
    return Backbone(
        nodes=("relu", "layer1", "layer2", "layer3", "layer4"),
        channels=(64, *(widest // 2**i for i in (3, 2, 1, 0))),
        levels=(
            ((7, 2),),
            ((3, 2), *((3, 1),) * first),
            *(((3, 2), *((3, 1),) * (count - 1)) for count in others),
        ),
    )


def _convnext(blocks: tuple[int, int, int, int]) -> Backbone:
    """Liu et al. 2022, arXiv 2201.03545: each block has a 7 x 7 convolution."""
    return Backbone(
        nodes=("features.1", "features.3", "features.5", "features.7"),
        channels=(96, 192, 384, 768),
        levels=tuple(
            ((stride, stride), *((7, 1),) * count)
            for stride, count in zip((4, 2, 2, 2), blocks, strict=True)
        ),
    )


def _with_squeeze_and_excitation(places: tuple[int, ...], channels: tuple[int, ...]) -> Backbone:
    """Hu et al. 2017, arXiv 1709.01507, is what lets these networks see all."""
    return Backbone(
        nodes=tuple(f"features.{place}" for place in places),
        channels=channels,
        levels=(((3, 2),),) * 5,
        sees_all=True,
    )


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet((2, 2, 2, 2), 512, 2),
    "resnet34": _resnet((3, 4, 6, 3), 512, 2),
    "resnet50": _resnet((3, 4, 6, 3), 2048, 1),
    "resnet101": _resnet((3, 4, 23, 3), 2048, 1),
    "convnext_tiny": _convnext((3, 3, 9, 3)),
    "convnext_small": _convnext((3, 3, 27, 3)),
    "efficientnet_b0": _with_squeeze_and_excitation((1, 2, 3, 5, 7), (16, 24, 40, 112, 320)),
    "efficientnet_v2_s": _with_squeeze_and_excitation((1, 2, 3, 5, 6), (24, 48, 64, 160, 256)),
    "mobilenet_v3_large": _with_squeeze_and_excitation((1, 3, 6, 12, 15), (16, 24, 40, 112, 160)),
}
"""By their names in torchvision; the full image, which none of them gives, is not among levels."""


def levels_of(encoder: Encoder, count: int) -> tuple[Level, ...]:
    """Levels of an encoder, the full image included; `count` of the U-Net's own.

    A backbone begins at the image, so it has no layer at its size: the stem sees less than it.
    """
    return own_levels(count) if encoder == "none" else ((), *BACKBONES[encoder].levels)


def sees_all(encoder: Encoder) -> bool:
    """Whether every pixel depends on all others, however far."""
    return encoder != "none" and BACKBONES[encoder].sees_all
