"""The encoders by name and the layers of their levels. Imports no torch: the config needs it."""

import difflib
from dataclasses import dataclass

Level = tuple[tuple[int, int], ...]
"""(kernel, stride) of the layers on the longest path through a level; padding keeps H and W."""


@dataclass(frozen=True)
class EncoderSpec:
    """A classification network of torchvision or timm as an encoder.

    Args:
        nodes: modules of torchvision whose outputs are the features, from the largest down.
        channels: channels of each feature map.
        levels: the layers before each feature map; with global_field only those with a stride.
        global_field: whether each output pixel depends on the whole image, or may do so.
    """

    nodes: tuple[str, ...]
    channels: tuple[int, ...]
    levels: tuple[Level, ...]
    global_field: bool = False


def _resnet(blocks: tuple[int, int, int, int], widest: int, convolutions: int) -> EncoderSpec:
    """He et al. 2015, arXiv 1512.03385; `convolutions` counts the 3 x 3 convolutions of a block."""
    first, *others = (count * convolutions for count in blocks)
    return EncoderSpec(
        ("relu", "layer1", "layer2", "layer3", "layer4"),
        (64, *(widest // 2**i for i in (3, 2, 1, 0))),
        (
            ((7, 2),),
            ((3, 2), *((3, 1),) * first),
            *(((3, 2), *((3, 1),) * (count - 1)) for count in others),
        ),
    )


def _convnext(blocks: tuple[int, int, int, int]) -> EncoderSpec:
    """Liu et al. 2022, arXiv 2201.03545: each block has a 7 x 7 convolution."""
    levels = (((s, s), *((7, 1),) * n) for s, n in zip((4, 2, 2, 2), blocks, strict=True))
    nodes = ("features.1", "features.3", "features.5", "features.7")
    return EncoderSpec(nodes, (96, 192, 384, 768), tuple(levels))


def _squeeze_and_excitation(stages: tuple[int, ...], channels: tuple[int, ...]) -> EncoderSpec:
    """Hu et al. 2017, arXiv 1709.01507: channels are scaled by means over the whole image."""
    return EncoderSpec(tuple(f"features.{i}" for i in stages), channels, (((3, 2),),) * 5, True)


ENCODER_SPECS: dict[str, EncoderSpec] = {
    "resnet18": _resnet((2, 2, 2, 2), 512, 2),
    "resnet34": _resnet((3, 4, 6, 3), 512, 2),
    "resnet50": _resnet((3, 4, 6, 3), 2048, 1),
    "resnet101": _resnet((3, 4, 23, 3), 2048, 1),
    "convnext_tiny": _convnext((3, 3, 9, 3)),
    "convnext_small": _convnext((3, 3, 27, 3)),
    "efficientnet_b0": _squeeze_and_excitation((1, 2, 3, 5, 7), (16, 24, 40, 112, 320)),
    "efficientnet_v2_s": _squeeze_and_excitation((1, 2, 3, 5, 6), (24, 48, 64, 160, 256)),
    "mobilenet_v3_large": _squeeze_and_excitation((1, 3, 6, 12, 15), (16, 24, 40, 112, 160)),
}
"""By the names in torchvision. None has features at the image's full resolution."""


TIMM = "timm/"
"""The prefix of the names of timm's networks."""


def encoder_spec(encoder: str) -> EncoderSpec:
    """Return the spec of an encoder other than none.

    Raises:
        ValueError: if there is no such encoder, or its package is not installed.
    """
    if encoder.startswith(TIMM):
        from unet.models.timm_backbone import timm_spec  # imports torch

        return timm_spec(encoder)
    if encoder not in ENCODER_SPECS:
        near = difflib.get_close_matches(encoder, ENCODER_SPECS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        names = ", ".join(["none", *ENCODER_SPECS])
        raise ValueError(f"encoder: got {encoder!r}, expected one of {names}, timm/NAME{hint}")
    return ENCODER_SPECS[encoder]


def encoder_levels(encoder: str, num_widths: int) -> tuple[Level, ...]:
    """Return the levels from the full resolution down; other encoders have no layers at it."""
    if encoder != "none":
        return (), *encoder_spec(encoder).levels
    convolutions = (3, 1), (3, 1)
    return convolutions, *(((2, 2), *convolutions),) * (num_widths - 1)
