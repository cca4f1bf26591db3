"""Large images in tiles: place tiles, run a model on them, combine the logits.

Tiles overlap and lie on the network's grid, so that pooling groups the same pixels as in the whole
image. If they overlap by twice the network's margin and meet in the middle, each pixel comes from a
tile that contains its whole receptive field, and the result equals that of the whole image up to
rounding. This is impossible for norms with statistics over the whole input, and for encoders whose
receptive field is larger than a tile: there, tiles are blended to avoid seams.

For an unpadded network the whole image is mirrored at its borders, as in the paper, and tiles take
their context from that (`UNet.mirror_context`). For a padded network tiles end where the image
ends, because there the whole image is padded, too.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, figure 2 (overlap-tile strategy).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.runtime.progress import show_progress


@dataclass(frozen=True)
class Tiles:
    """How an image is cut into tiles.

    Args:
        size: (height, width) of the largest tile, context included; rounded up to `align`.
        overlap: smallest overlap of neighbouring tiles in pixels; rounded up to `align`.
        align: `UNet.output_stride`: tiles start at multiples of it.
        blend: whether tiles fade into each other over the overlap; otherwise they meet in its
            middle.
        context: `Geometry.context`, pixels on each side of a tile without logits.
        remainder: `Geometry.remainder`; also the smallest overlap.
        batch_size: number of tiles that go through the model together.
    """

    size: tuple[int, int]
    overlap: int
    align: int = 1
    blend: bool = True
    context: int = 0
    remainder: int = 0
    batch_size: int = 1

    def place(self, axis: int, size: int) -> tuple[int, list[int]]:
        """Place as few and as small tiles as possible along an axis of so many pixels.

        Returns:
            The size of every tile and the start of each, both without context.

        Raises:
            ValueError: if a tile is not larger than the overlap.
        """
        tile = self.size[axis] - 2 * self.context
        overlap = max(self.overlap, self.remainder)
        # In units of `align`; each tile also has the remainder.
        image, largest, common = (
            math.ceil((pixels - self.remainder) / self.align) for pixels in (size, tile, overlap)
        )
        if largest <= common:
            raise ValueError(
                f"tiles: got {tile} pixels with an overlap of {overlap}, expected at least "
                f"{overlap + self.align}"
            )
        count = max(math.ceil((image - common) / (largest - common)), 1)
        step = math.ceil((image - common) / count)
        last = image - common - step
        starts = [min(i * step, last) * self.align for i in range(count)]
        return (step + common) * self.align + self.remainder, starts

    def weights(self, starts: list[int], tile: int) -> Tensor:
        """Return the weight of each pixel of each tile along an axis, (T, tile), from `place`."""
        if self.blend:
            return blend_weights(starts, tile, self.overlap)
        return cut_weights(starts, tile)


def cut_weights(starts: list[int], tile: int) -> Tensor:
    """Return weights (T, tile): 1 up to the middle of each overlap, 0 beyond it."""
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
    """Return weights (T, tile) that rise and fall over `overlap` pixels; each pixel's sum is 1."""
    distance = torch.arange(1, tile + 1).float()
    hat = (torch.minimum(distance, distance.flip(0)) / (overlap + 1)).clamp(max=1)
    total = torch.zeros(starts[-1] + tile)
    for start in starts:
        total[start : start + tile] += hat
    return torch.stack([hat / total[start : start + tile] for start in starts])


def sliding_window(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    tiles: Tiles,
    bar: str | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run a model on an image in tiles -> logits (K, H, W) float32 on the image's device.

    Args:
        model: (N, C, h, w) -> (N, K, h, w), or less by the context on each side; on any device.
        image: (C, H, W), with context on each side, if the model needs it.
        tiles: how to cut the image.
        bar: title of the progress bar; None for no bar. A single tile has none.
        finish: applied to the logits of each row of tiles, (K, h, W) -> (..., h, W), so that those
            of the whole image are never in memory; the result is (..., H, W).
    """
    margin = 2 * tiles.context
    height, width = (side - margin for side in image.shape[1:])

    def read(rows: slice, columns: slice) -> Tensor:
        return image[:, rows.start : rows.stop + margin, columns.start : columns.stop + margin]

    result: Tensor | None = None
    for top, logits in sliding_bands(model, read, (height, width), tiles, bar):
        band = (logits if finish is None else finish(logits)).to(image.device)
        if result is None:
            result = band.new_empty(*band.shape[:-2], height, width)
        result[..., top : top + band.shape[-2], :] = band
    assert result is not None  # there is at least one tile
    return result


def sliding_bands(
    model: Callable[[Tensor], Tensor],
    read: Callable[[slice, slice], Tensor],
    size: tuple[int, int],
    tiles: Tiles,
    bar: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run a model in tiles as `sliding_window`; at most one row of tiles is in memory.

    Args:
        model: as in `sliding_window`.
        read: returns these rows and columns of the image, with context around them.
        size: (H, W) of the logits.
        tiles: how to cut the image.
        bar: as in `sliding_window`.

    Yields:
        From top to bottom, the first row of a finished band, and its logits (K, h, W) float32 on
        the model's device, valid until the next band.
    """
    height, width = size
    (tall, tops), (wide, lefts) = (tiles.place(axis, side) for axis, side in enumerate(size))
    rows, columns = tiles.weights(tops, tall), tiles.weights(lefts, wide)
    # Without context a tile ends at the border of the image, and is extended after reading.
    limits = (math.inf, math.inf) if tiles.context else size

    def read_tile(top: int, left: int) -> Tensor:
        bottom, right = min(top + tall, limits[0]), min(left + wide, limits[1])
        tile = read(slice(top, int(bottom)), slice(left, int(right)))
        below, beside = (
            side + 2 * tiles.context - got
            for side, got in zip((tall, wide), tile.shape[1:], strict=True)
        )
        return F.pad(tile, (0, beside, 0, below), mode="replicate")

    places = list(product(range(len(tops)), range(len(lefts))))
    logits: Tensor | None = None  # of the rows that later tiles may still add to
    batches = [
        places[first : first + tiles.batch_size]
        for first in range(0, len(places), tiles.batch_size)
    ]
    unit = "tile" if tiles.batch_size == 1 else "batch"
    for batch in show_progress(batches, bar or "", unit, hide=bar is None or len(places) == 1):
        scores = model(torch.stack([read_tile(tops[i], lefts[j]) for i, j in batch]))
        for (i, j), score in zip(batch, scores, strict=True):
            top, left = tops[i], lefts[j]
            weights = torch.outer(rows[i].to(score.device), columns[j].to(score.device))
            if logits is None:
                shape = (len(score), tall, lefts[-1] + wide)
                logits = score.new_zeros(shape, dtype=torch.float32)
            logits[:, :, left : left + wide] += score * weights
            if j + 1 == len(lefts) and i + 1 < len(tops):
                done = tops[i + 1] - top  # the next row of tiles begins there
                yield top, logits[:, :done, :width]
                logits[:, : tall - done] = logits[:, done:].clone()
                logits[:, tall - done :] = 0
    assert logits is not None  # there is at least one tile
    yield tops[-1], logits[:, : height - tops[-1], :width]
