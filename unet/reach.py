"""How far a U-Net sees. Imports no torch, so that the config can ask.

The network sees its image on a grid: pixels that end in one pixel of the deepest level make a cell.
"""


def factor(levels: int) -> int:
    """Side of a cell in pixels; sizes that the levels can halve are multiples of it."""
    return int(2 ** (levels - 1))


def reach(levels: int, position: int = 0) -> int:
    """Pixels to the left of an output pixel that its value depends on.

    Args:
        levels: of the network, the full image included.
        position: of the pixel in its cell, 0 to factor - 1. To the right it sees as far as one at
            factor - 1 - position to the left, up and down as far as left and right. The furthest
            of all is 7 * factor - 5.
    """
    leftmost = position
    for _ in range(levels - 1):  # the decoder backwards: two 3 x 3 convolutions, up-convolution
        leftmost = (leftmost - 2) // 2
    leftmost -= 2
    for _ in range(levels - 1):  # the encoder backwards: two pixels become one, two convolutions
        leftmost = 2 * leftmost - 2
    return position - leftmost


def margin(levels: int) -> int:
    """Pixels, in whole cells, that can depend on what lies beyond an edge on the grid.

    6 * factor from three levels on.
    """
    cell = factor(levels)
    return -(-reach(levels) // cell) * cell


BEYOND_CELLS = 4
"""Pixels by which the logits of an unpadded network end beyond whole cells."""


def context(levels: int) -> int:
    """Pixels that an unpadded network takes on each side beyond those that it gives logits for.

    Each level loses 2 of its own pixels on each side, which are 2, 4, 8, ... of the image's, and
    but for the deepest one again on the way up. 92 with five levels.
    """
    return 6 * factor(levels) - 4


def unpadded_side(levels: int, pixels: int) -> int:
    """Smallest side of an image that an unpadded network gives at least so many logits for.

    It can halve no others but these: with five levels 188, 204, ..., 572, ..., for logits of 4, 20,
    ..., 388, ... pixels.
    """
    cell = factor(levels)
    cells = (pixels - BEYOND_CELLS + cell - 1) // cell
    return cells * cell + BEYOND_CELLS + 2 * context(levels)
