"""Draw the picture of the transposed convolution for the README."""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unet.models.conv_transpose import kernel_times_pixel, lay_blocks
from unet.runtime.files import atomic_path

PICTURE = Path(__file__).parent.parent / ".github" / "images" / "conv_transpose.png"
SCALE = 2  # sharp on screens with many pixels per inch
SQUARE, GAP, MARGIN = 40 * SCALE, 28 * SCALE, 24 * SCALE
INK, LINE, PAPER = (40, 40, 40), (120, 120, 120), (255, 255, 255)
COLOURS = {(0, 0): (255, 200, 120), (0, 1): (150, 210, 245), (1, 0): (140, 215, 180),
           (1, 1): (240, 170, 200)}  # fmt: skip
PIXELS = torch.tensor([[1, 2], [3, 4]])


def mix(colours: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the mean of the colours of overlapping blocks, a little darker."""
    shade = 1 if len(colours) == 1 else 0.85
    red, green, blue = (
        round(shade * sum(band) / len(colours)) for band in zip(*colours, strict=True)
    )
    return red, green, blue


class Picture:
    """A canvas for grids and text."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(15 * SCALE)

    def text(self, x: float, y: float, text: str, anchor: str = "lm") -> None:
        """Write `text` at (x, y)."""
        self.draw.text((x, y), text, font=self.font, fill=INK, anchor=anchor)

    def arrow(self, x: float, y: float) -> None:
        """Draw an arrow to the right around (x, y)."""
        half, head = 10 * SCALE, 5 * SCALE
        self.draw.line((x - half, y, x + half, y), INK, SCALE)
        self.draw.polygon([(x + half, y), (x + head, y - head), (x + head, y + head)], INK)

    def grid(self, x: float, y: float, numbers: Tensor, colours: dict) -> None:
        """Draw a matrix with its top left corner at (x, y) and colours by position."""
        for i, row in enumerate(numbers.tolist()):
            for j, number in enumerate(row):
                left, top = x + j * SQUARE, y + i * SQUARE
                box = (left, top, left + SQUARE, top + SQUARE)
                self.draw.rectangle(box, colours.get((i, j), PAPER), LINE, SCALE)
                self.text(left + SQUARE / 2, top + SQUARE / 2, str(number), "mm")


def draw_operation(title: str, kernel: Tensor, stride: int) -> Image.Image:
    """Draw the input, the kernel, one block for each pixel, and the output."""
    blocks = kernel_times_pixel(PIXELS, kernel)
    output = lay_blocks(blocks, stride)
    n, side = kernel.shape[0] * SQUARE, output.shape[0] * SQUARE
    middle = MARGIN + 60 * SCALE + max(side, 2 * n + GAP) / 2
    picture = Picture(
        round(2 * MARGIN + 2 * SQUARE + n + 2 * n + GAP + side + 6 * GAP),
        round(2 * middle - 24 * SCALE),
    )
    picture.text(MARGIN, MARGIN, title)

    def column(x: float, width: float, height: float, name: str) -> tuple[float, float]:
        """Write the name above a grid and return the corner of the grid."""
        top = middle - height / 2
        picture.text(x + width / 2, top - 14 * SCALE, name, "mm")
        return x, top

    x = float(MARGIN)
    picture.grid(*column(x, 2 * SQUARE, 2 * SQUARE, "input"), PIXELS, COLOURS)
    x += 2 * SQUARE + GAP
    picture.text(x, middle, "x", "mm")
    x += GAP
    picture.grid(*column(x, n, n, "kernel"), kernel, {})
    x += n + GAP
    picture.text(x, middle, "=", "mm")
    x += GAP
    left, top = column(x, 2 * n + GAP, 2 * n + GAP, "kernel times pixel")
    for place, colour in COLOURS.items():
        squares = {(i, j): colour for i in range(len(kernel)) for j in range(len(kernel))}
        corner = (left + place[1] * (n + GAP), top + place[0] * (n + GAP))
        picture.grid(*corner, blocks[place], squares)
    x += 2 * n + 2 * GAP
    picture.arrow(x, middle)
    x += GAP
    under: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for (row, column_), colour in COLOURS.items():
        for i in range(len(kernel)):
            for j in range(len(kernel)):
                under.setdefault((row * stride + i, column_ * stride + j), []).append(colour)
    squares = {place: mix(colours) for place, colours in under.items()}
    picture.grid(*column(x, side, side, "output"), output, squares)
    return picture.image


def draw_both() -> Image.Image:
    """Draw a kernel as large as the stride, and below it a larger one."""
    pictures = [
        draw_operation(
            "2 x 2 kernel, stride 2: the blocks do not overlap",
            torch.tensor([[1, 2], [3, 4]]),
            stride=2,
        ),
        draw_operation(
            "3 x 3 kernel, stride 2: overlapping blocks are summed",
            torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]),
            stride=2,
        ),
    ]
    width, height = max(one.width for one in pictures), sum(one.height for one in pictures)
    sheet = Image.new("RGB", (width, height), PAPER)
    top = 0
    for one in pictures:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def main() -> None:
    """Write the picture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with atomic_path(PICTURE) as temporary:
        draw_both().save(temporary, format="PNG", optimize=True)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
