"""Receptive field and sizes of a network. Imports no torch: the config needs it.

A network divides the image into a grid: the pixels that end in one pixel of the deepest level are a
grid unit, `output_stride` pixels wide.
"""

from dataclasses import dataclass
from math import prod

from unet.models.encoder_specs import ENCODER_SPECS, Encoder, Level, encoder_levels


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes in pixels that follow from a network's layers; the same for height and width.

    Args:
        output_stride: side of a grid unit. A padded network takes multiples of it.
        context: pixels on each side of an input without logits; 0 for a padded network. 92 for an
            unpadded one with five levels.
        remainder: the side of the logits is a multiple of output_stride plus this; 0 for a padded
            network.
        margin: pixels next to an edge on the grid, in whole grid units, whose logits can depend on
            pixels beyond the edge.
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
        logits of 4, 20, ..., 388, ... pixels. A padded one takes any.
        """
        if not self.context:
            return pixels
        units = -(-(pixels - self.remainder) // self.output_stride)
        return units * self.output_stride + self.remainder + 2 * self.context


def unet_geometry(
    encoder: Encoder = "none",
    num_widths: int = 5,
    norm: str = "batch",
    upsampling: str = "conv_transpose",
    padding: str = "same",
) -> Geometry:
    """Compute the geometry of a `UNet` with these arguments."""
    levels, unpadded = encoder_levels(encoder, num_widths), padding == "valid"
    stride = prod(level_strides(levels))
    bilinear = upsampling == "bilinear"
    furthest = max(
        dependencies(levels, 0, bilinear)[0], dependencies(levels, stride - 1, bilinear)[1]
    )
    margin = -(-furthest // stride) * stride
    global_field = encoder != "none" and ENCODER_SPECS[encoder].global_field
    # Each unpadded level loses 2 of its own pixels on each side, which are 2, 4, 8, ... of the
    # image's, and all but the deepest lose them again in the decoder.
    remainder, context = (4, 6 * stride - 4) if unpadded else (0, 0)
    exact = remainder if unpadded else 2 * margin
    return Geometry(
        output_stride=stride,
        context=context,
        remainder=remainder,
        margin=margin,
        # These norms take statistics over the whole input.
        exact_overlap=None if global_field or norm in ("group", "instance") else exact,
    )


def receptive_field(
    encoder: Encoder = "none", num_widths: int = 5, upsampling: str = "conv_transpose"
) -> tuple[int, int] | None:
    """Compute the side of an output pixel's receptive field and the largest distance in it.

    Returns:
        The largest of each over all output pixels; None if each depends on the whole image.
    """
    if encoder != "none" and ENCODER_SPECS[encoder].global_field:
        return None
    levels = encoder_levels(encoder, num_widths)
    sides = [
        dependencies(levels, i, upsampling == "bilinear")
        for i in range(prod(level_strides(levels)))
    ]
    return max(left + 1 + right for left, right in sides), max(map(max, sides))


def level_strides(levels: tuple[Level, ...]) -> list[int]:
    """How many times smaller each level is than the level before."""
    return [prod(stride for _, stride in level) for level in levels]


def dependencies(
    levels: tuple[Level, ...], position: int = 0, bilinear: bool = False
) -> tuple[int, int]:
    """Pixels to the left and to the right of an output pixel that it depends on; so up and down.

    Args:
        levels: of the encoder, from the full resolution down.
        position: of the pixel in its grid unit, 0 to output stride - 1.
        bilinear: whether the decoder interpolates, so that an upsampled pixel depends on two pixels
            instead of one.
    """
    left = right = position
    for stride in level_strides(levels)[
        1:
    ]:  # backwards through the decoder: convolutions, upsampling
        left, right = left - 2, right + 2
        if bilinear:  # pixel p lies at (p + 1/2) / stride - 1/2, between two
            left, right = (
                (2 * left + 1 - stride) // (2 * stride),
                (2 * right + 1 - stride) // (2 * stride) + 1,
            )
        else:
            left, right = left // stride, right // stride
    for level in reversed(levels):
        for kernel, stride in reversed(level):
            first = -((kernel - stride + 1) // 2)
            left, right = left * stride + first, right * stride + first + kernel - 1
    return position - left, right - position
