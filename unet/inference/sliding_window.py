"""Large images in tiles: where they go, and what of each is kept.

Tiles lie on the network's grid, so that the same pixels are pooled together as in the whole image,
and overlap. Where they overlap by twice the network's margin and meet in the middle, each pixel is
taken from a tile that holds all that the pixel depends on, and the result is that of the whole
image to rounding. Norms that take the statistics of their whole input leave no such pixels, nor do
encoders that see further than a tile: there neighbours blend, so that their difference does not
show as a seam.

The paper mirrors the image at its borders, since its convolutions are unpadded and would lose them:
so does `UNet.mirror_context`, once for the whole image, and each tile takes its context from there. With
convolutions padded by zeros, mirroring would put something else beyond the border of an image in
tiles than beyond that of a whole one: there tiles end where the image does.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 2 (overlap-tile strategy).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unet.runtime import distributed


def place_tiles(
    size: int, tile: int, overlap: int, align: int = 1, context: int = 0, remainder: int = 0
) -> tuple[int, list[int]]:
    """Place as few tiles as it takes along one side of an image, none larger than it takes.

    Args:
        size: of the image in pixels.
        tile: of the largest tile in pixels, `context` included, which is more than `overlap`;
            rounded up to `align`.
        overlap: pixels that neighbouring tiles share at least; rounded up to `align`.
        align: every tile starts and ends at a multiple of it, so that the last one may stick out of
            the image by less than `align`.
        context: pixels on each side of a tile that an unpadded network loses.
        remainder: without context, a tile ends so many pixels after a multiple of `align`, and
            neighbours share at least as many.

    Returns:
        The size of every tile, and where each starts, both without context.

    Raises:
        ValueError: if a tile is no larger than the overlap.
    """
    tile, overlap = tile - 2 * context, max(overlap, remainder)
    cells, largest, shared = (
        math.ceil((pixels - remainder) / align) for pixels in (size, tile, overlap)
    )
    if largest <= shared:
        raise ValueError(
            f"tiles: got {tile} pixels with an overlap of {overlap}, expected at least "
            f"{overlap + align}"
        )
    count = max(math.ceil((cells - shared) / (largest - shared)), 1)
    step = math.ceil((cells - shared) / count)
    last = cells - shared - step
    return (step + shared) * align + remainder, [min(i * step, last) * align for i in range(count)]


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
    context: int = 0,
    remainder: int = 0,
    batch_size: int = 1,
    bar: str | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run the model on an image in tiles.

    Args:
        model: (N, C, h, w) -> (N, K, h, w), on any device; with context that much less.
        image: (C, H, W), with context that much more, as `UNet.mirror_context` gives it.
        size: (height, width) of the largest tile in pixels, context included; rounded up to
            `align`.
        overlap: pixels that neighbouring tiles share at least.
        align: tiles lie at multiples of it, and an image that ends elsewhere is extended by its
            last pixels: a UNet's `factor`.
        blend: whether tiles fade into each other over the overlap; otherwise they meet in its
            middle, which is exact for a UNet of norm batch or none and twice its `margin`.
        context: pixels on each side of a tile that there are no logits for: a UNet's `context`.
        remainder: as `place_tiles`: that of a UNet's `geometry`.
        batch_size: tiles that go through the model together.
        bar: title of a progress bar, if there are several tiles; None for none.
        finish: what is made of the logits of a row of tiles, (K, h, W) -> (..., h, W), so that
            those of the whole image are never there; None for nothing.

    Returns:
        (..., H, W), without `finish` (K, H, W) float32, on the image's device.
    """
    height, width = (side - 2 * context for side in image.shape[1:])
    result: Tensor | None = None
    for top, logits in bands(
        model,
        lambda rows, columns: image[
            :,
            rows.start + context : rows.stop + context,
            columns.start + context : columns.stop + context,
        ],
        (height, width),
        tile=size,
        overlap=overlap,
        align=align,
        blend=blend,
        context=context,
        remainder=remainder,
        batch_size=batch_size,
        bar=bar,
    ):
        band = (logits if finish is None else finish(logits)).to(image.device)
        if result is None:
            result = band.new_empty(*band.shape[:-2], height, width)
        result[..., top : top + band.shape[-2], :] = band
    assert result is not None  # there is at least one tile
    return result


def bands(
    model: Callable[[Tensor], Tensor],
    read: Callable[[slice, slice], Tensor],
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: int,
    align: int = 1,
    blend: bool = True,
    context: int = 0,
    remainder: int = 0,
    batch_size: int = 1,
    bar: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run the model in tiles, and yield what is finished: bands of the image, from the top down.

    `read` gives those rows and columns, (C, h, w), of an image that has logits of `size` (H, W);
    with context also those beyond its borders. `tile` is the size of the largest tile; the rest is
    as in `sliding_window`. There is never more than a batch of tiles and the logits of a row of
    them in memory.

    Yields:
        The row that a band begins in, and its logits (K, h, W), float32 on the model's device, to
        be used before the next is asked for.
    """
    height, width = size
    (tall, tops), (wide, lefts) = (
        place_tiles(pixels, largest, overlap, align, context, remainder)
        for pixels, largest in zip(size, tile, strict=True)
    )
    rows, columns = (
        blend_weights(starts, side, overlap) if blend else cut_weights(starts, side)
        for starts, side in ((tops, tall), (lefts, wide))
    )
    places = list(product(range(len(tops)), range(len(lefts))))
    logits: Tensor | None = None  # of the rows that tiles may still add to
    hide = True if bar is None or len(places) == 1 else distributed.disable_progress()
    progress = tqdm(total=len(places), desc=bar, unit="tile", leave=False, disable=hide)
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        tiles = [
            read(
                _seen(tops[i], tall, height, context),
                _seen(lefts[j], wide, width, context),
            )
            for i, j in batch
        ]
        shown = tall + 2 * context, wide + 2 * context
        scores = model(torch.stack([_extend(part, *shown) for part in tiles]))
        for (i, j), score in zip(batch, scores, strict=True):
            top, left = tops[i], lefts[j]
            weights = torch.outer(rows[i].to(score.device), columns[j].to(score.device))
            if logits is None:
                shape = (len(score), tall, lefts[-1] + wide)
                logits = score.new_zeros(shape, dtype=torch.float32)
            logits[:, :, left : left + wide] += score * weights
            if j + 1 == len(lefts) and i + 1 < len(tops):
                done = tops[i + 1] - top  # no later tile reaches above the next row of them
                yield top, logits[:, :done, :width]
                logits[:, : tall - done] = logits[:, done:].clone()
                logits[:, tall - done :] = 0
        progress.update(len(batch))
    progress.close()
    assert logits is not None  # there is at least one tile
    yield tops[-1], logits[:, : height - tops[-1], :width]


def _seen(start: int, length: int, side: int, context: int) -> slice:
    """What a tile takes along one side of an image: to its end, or with its context beyond it."""
    if context:
        return slice(start - context, start + length + context)
    return slice(start, min(start + length, side))


def _extend(tile: Tensor, height: int, width: int) -> Tensor:
    """Extend a tile by its last pixels, as UNet does: (C, h, w) -> (C, height, width)."""
    bottom, right = height - tile.shape[1], width - tile.shape[2]
    return F.pad(tile, (0, right, 0, bottom), mode="replicate")
