"""Large images in tiles: where they go, and what of each is kept.

Tiles lie on the network's grid, so that the same pixels are pooled together as in the whole image,
and overlap. Where they overlap by twice the network's margin and meet in the middle, each pixel is
taken from a tile that holds all that the pixel depends on, and the result is that of the whole
image to rounding. Norms that take the statistics of their whole input leave no such pixels, nor do
encoders that see further than a tile: there neighbours blend, so that their difference does not
show as a seam.

The paper mirrors the image at its borders, since its convolutions are unpadded and would lose them.
Here they are padded with zeros, and mirroring would put something else beyond the border of an
image in tiles than beyond that of a whole one: tiles end where the image does.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 2 (overlap-tile strategy).
"""

import math
from collections.abc import Callable
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unet import distributed


def place_tiles(size: int, tile: int, overlap: int, align: int = 1) -> tuple[int, list[int]]:
    """Place as few tiles as it takes along one side of an image, none larger than it takes.

    Args:
        size: of the image in pixels.
        tile: of the largest tile in pixels, more than `overlap`; rounded up to `align`.
        overlap: pixels that neighbouring tiles share at least; rounded up to `align`.
        align: every tile starts and ends at a multiple of it, so that the last one may stick out of
            the image by less than `align`.

    Returns:
        The size of every tile, and where each starts.

    Raises:
        ValueError: if a tile is no larger than the overlap.
    """
    cells, largest, shared = (math.ceil(pixels / align) for pixels in (size, tile, overlap))
    if largest <= shared:
        raise ValueError(
            f"tiles: got {tile} pixels with an overlap of {overlap}, expected at least "
            f"{overlap + align}"
        )
    count = max(math.ceil((cells - shared) / (largest - shared)), 1)
    step = math.ceil((cells - shared) / count)
    last = cells - shared - step
    return (step + shared) * align, [min(i * step, last) * align for i in range(count)]


def cut_weights(starts: list[int], tile: int) -> Tensor:
    """Weights (T, tile) that are 1 as far as the middle of what tiles share, and 0 beyond."""
    meet = [(one + other + tile) // 2 for one, other in pairwise(starts)]
    kept = pairwise([0, *meet, starts[-1] + tile])
    pixel = torch.arange(tile)
    return torch.stack(
        [
            ((first - start <= pixel) & (pixel < end - start)).float()
            for start, (first, end) in zip(starts, kept, strict=True)
        ]
    )


def blend_weights(starts: list[int], tile: int, overlap: int) -> Tensor:
    """Weights (T, tile) that rise and fall over `overlap` pixels, at every pixel 1 together."""
    distance = torch.arange(1, tile + 1).float()
    hat = (torch.minimum(distance, distance.flip(0)) / (overlap + 1)).clamp(max=1)
    total = torch.zeros(starts[-1] + tile)
    for start in starts:
        total[start : start + tile] += hat
    return torch.stack([hat / total[start : start + tile] for start in starts])


def sliding_window(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    size: tuple[int, int],
    overlap: int,
    align: int = 1,
    blend: bool = True,
    batch_size: int = 1,
    bar: str | None = None,
) -> Tensor:
    """Run the model on an image in tiles.

    Beside the image and its logits there is never more than a batch of tiles in memory.

    Args:
        model: (N, C, h, w) -> (N, K, h, w), on any device.
        image: (C, H, W).
        size: (height, width) of the largest tile in pixels; rounded up to `align`.
        overlap: pixels that neighbouring tiles share at least.
        align: tiles lie at multiples of it, and an image that ends elsewhere is extended by its
            last pixels: a UNet's `factor`.
        blend: whether tiles fade into each other over the overlap; otherwise they meet in its
            middle, which is exact for a UNet of norm batch or none and twice its `margin`.
        batch_size: tiles that go through the model together.
        bar: title of a progress bar, if there are several tiles; None for none.

    Returns:
        (K, H, W) float32, on the image's device.
    """
    height, width = image.shape[1:]
    (tall, tops), (wide, lefts) = (
        place_tiles(pixels, tile, overlap, align)
        for pixels, tile in zip((height, width), size, strict=True)
    )
    rows, columns = (
        blend_weights(starts, tile, overlap) if blend else cut_weights(starts, tile)
        for starts, tile in ((tops, tall), (lefts, wide))
    )
    places = list(product(zip(tops, rows, strict=True), zip(lefts, columns, strict=True)))
    logits: Tensor | None = None
    hide = True if bar is None or len(places) == 1 else distributed.hide_bar()
    progress = tqdm(total=len(places), desc=bar, unit="tile", leave=False, disable=hide)
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        tiles = [image[:, top : top + tall, left : left + wide] for (top, _), (left, _) in batch]
        scores = model(torch.stack([_extend(tile, tall, wide) for tile in tiles]))
        if logits is None:
            logits = image.new_zeros(
                scores.shape[1], tops[-1] + tall, lefts[-1] + wide, dtype=torch.float32
            )
        for ((top, row), (left, column)), score in zip(batch, scores, strict=True):
            weights = torch.outer(row.to(score.device), column.to(score.device))
            logits[:, top : top + tall, left : left + wide] += (score * weights).to(logits.device)
        progress.update(len(batch))
    progress.close()
    assert logits is not None  # there is at least one tile
    return logits[:, :height, :width]


def _extend(tile: Tensor, height: int, width: int) -> Tensor:
    """Extend a tile by its last pixels, as UNet does: (C, h, w) -> (C, height, width)."""
    bottom, right = height - tile.shape[1], width - tile.shape[2]
    return F.pad(tile, (0, right, 0, bottom), mode="replicate")
