"""Receptive field and sizes of a network. Imports no torch: the config needs it.

A network divides the image into a grid. The pixels that end in one pixel of the deepest level are a
grid unit, `output_stride` pixels wide.
"""

from dataclasses import dataclass
from math import prod

from unet.models.encoder_specs import Level, encoder_levels, encoder_spec


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes in pixels that follow from a network's layers; the same for height and width.

    Args:
        output_stride: side of a grid unit.
        context: pixels on each side of an unpadded network's input without logits: 92 with five
            levels. 0 for a padded network.
        remainder: the logits of an unpadded network are a multiple of output_stride plus this.
        margin: distance from an edge on the grid, in whole grid units, within which logits depend
            on pixels beyond the edge.
        exact_overlap: smallest overlap with which tiles give the logits of the whole image; None if
            no overlap does.
    """

    output_stride: int
    context: int
    remainder: int
    margin: int
    exact_overlap: int | None

    def input_side(self, pixels: int) -> int:
        """Return the side of the smallest input with logits for at least so many pixels.

        An unpadded network takes no other sizes: with five levels 188, 204, ..., 572, ..., for
        logits of 4, 20, ..., 388, ... pixels. A padded network takes any.
        """
        if not self.context:
            return pixels
        # Rounded up in a way that torch.export can trace for sides that are symbols.
        units = (pixels - self.remainder + self.output_stride - 1) // self.output_stride
        return units * self.output_stride + self.remainder + 2 * self.context


def unet_geometry(
    encoder: str = "none",
    num_widths: int = 5,
    norm: str = "batch",
    upsampling: str = "conv_transpose",
    padding: str = "same",
) -> Geometry:
    """Compute the geometry of a `UNet` with these arguments."""
    levels, bilinear = encoder_levels(encoder, num_widths), upsampling == "bilinear"
    stride = prod(level_strides(levels))
    first, last = dependencies(levels, 0, bilinear), dependencies(levels, stride - 1, bilinear)
    margin = -(-max(first[0], last[1]) // stride) * stride
    # Each unpadded level loses 2 of its own pixels on each side, which are 2, 4, 8, ... of the
    # image's, and all but the deepest lose them again in the decoder.
    remainder, context = (4, 6 * stride - 4) if padding == "valid" else (0, 0)
    # These norms take statistics over the whole input.
    inexact = norm in ("group", "instance") or _has_global_field(encoder)
    return Geometry(
        output_stride=stride,
        context=context,
        remainder=remainder,
        margin=margin,
        exact_overlap=None if inexact else remainder or 2 * margin,
    )


def receptive_field(
    encoder: str = "none", num_widths: int = 5, upsampling: str = "conv_transpose"
) -> tuple[int, int] | None:
    """Compute the largest receptive field of an output pixel.

    Returns:
        Its side, and the largest distance to a pixel in it; None for the whole image.
    """
    if _has_global_field(encoder):
        return None
    levels, bilinear = encoder_levels(encoder, num_widths), upsampling == "bilinear"
    positions = range(prod(level_strides(levels)))
    sides = [dependencies(levels, position, bilinear) for position in positions]
    return max(left + 1 + right for left, right in sides), max(map(max, sides))


def _has_global_field(encoder: str) -> bool:
    return encoder != "none" and encoder_spec(encoder).global_field


def level_strides(levels: tuple[Level, ...]) -> list[int]:
    """How many times smaller each level is than the level before."""
    return [prod(stride for _, stride in level) for level in levels]


def dependencies(
    levels: tuple[Level, ...], position: int = 0, bilinear: bool = False
) -> tuple[int, int]:
    """Pixels to the left and to the right of an output pixel that its logits depend on.

    Args:
        levels: the encoder's, from the full resolution down.
        position: of the pixel in its grid unit, 0 to output stride - 1.
        bilinear: whether the decoder interpolates between two pixels.
    """
    left = right = position
    for stride in level_strides(levels)[1:]:  # backwards through the decoder
        left, right = left - 2, right + 2  # two 3 x 3 convolutions
        if bilinear:  # pixel p lies at (p + 1/2) / stride - 1/2
            left = (2 * left + 1 - stride) // (2 * stride)
            right = (2 * right + 1 - stride) // (2 * stride) + 1
        else:
            left, right = left // stride, right // stride
    for level in reversed(levels):
        for kernel, stride in reversed(level):
            first = -((kernel - stride + 1) // 2)
            left, right = left * stride + first, right * stride + first + kernel - 1
    return position - left, right - position
