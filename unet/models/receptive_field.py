"""How far a U-Net sees. Imports no torch, so that the config can ask.

The network sees its image on a grid: pixels that end in one pixel of the deepest level make a cell.
"""

from math import prod

Level = tuple[tuple[int, int], ...]
"""(kernel, stride) of the layers along the longest way through a level of the encoder.

Each is padded so that it makes H and W smaller by its stride, and no more.
"""

CONVOLUTIONS: Level = ((3, 1), (3, 1))


def own_levels(count: int) -> tuple[Level, ...]:
    """Levels of the U-Net's own encoder, the full image included."""
    return CONVOLUTIONS, *(((2, 2), *CONVOLUTIONS),) * (count - 1)


def strides(levels: tuple[Level, ...]) -> list[int]:
    """How many times smaller each level is than the one before."""
    return [prod(stride for _, stride in level) for level in levels]


def output_stride(levels: tuple[Level, ...]) -> int:
    """Side of a cell in pixels; sizes that the levels can divide are multiples of it."""
    return prod(strides(levels))


def reach(levels: tuple[Level, ...], position: int = 0, bilinear: bool = False) -> tuple[int, int]:
    """Pixels to the left and to the right of an output pixel that its value depends on.

    Up and down it sees as far.

    Args:
        levels: of the encoder, the full image included.
        position: of the pixel in its cell, 0 to factor - 1.
        bilinear: whether the decoder interpolates, so that a pixel depends on two of those that
            it comes from, and not on one.
    """
    left = right = position
    for stride in strides(levels)[1:]:  # the decoder backwards: convolutions, upsampling
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


def margin(levels: tuple[Level, ...], bilinear: bool = False) -> int:
    """Pixels, in whole cells, that can depend on what lies beyond an edge on the grid.

    6 * factor with an encoder of one's own from three levels on, 7 * factor if bilinear.
    """
    cell = output_stride(levels)
    furthest = max(reach(levels, 0, bilinear)[0], reach(levels, cell - 1, bilinear)[1])
    return -(-furthest // cell) * cell


BEYOND_CELLS = 4
"""Pixels by which the logits of an unpadded network end beyond whole cells."""


def context(levels: tuple[Level, ...]) -> int:
    """Pixels that an unpadded network takes on each side beyond those that it gives logits for.

    Of `own_levels`, as there are no others without padding: each loses 2 of its own pixels on each
    side, which are 2, 4, 8, ... of the image's, and but for the deepest one again on the way up. 92
    with five levels.
    """
    return 6 * output_stride(levels) - 4


def valid_input_side(levels: tuple[Level, ...], pixels: int) -> int:
    """Smallest side of an image that an unpadded network gives at least so many logits for.

    It can halve no others but these: with five levels 188, 204, ..., 572, ..., for logits of 4, 20,
    ..., 388, ... pixels.
    """
    cell = output_stride(levels)
    cells = (pixels - BEYOND_CELLS + cell - 1) // cell
    return cells * cell + BEYOND_CELLS + 2 * context(levels)
