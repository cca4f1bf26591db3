"""Where tiles go, and how they blend."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(size: int, tile: int, overlap: int, align: int = 1) -> list[int]:
    """Place tiles along one side of an image.

    Args:
        size: of the image in pixels.
        tile: of a tile in pixels; the last one may stick out of the image by less than `align`.
        overlap: pixels that neighbouring tiles share at least; at most `tile - align`.
        align: every start is a multiple of it. A network that pools sees the same pixels together
            in a tile as in the whole image if `align` is its `factor`.
    """
    last = math.ceil(max(size - tile, 0) / align) * align
    step = (tile - overlap) // align * align
    return [*range(0, last, step), last]


def blend_weights(size: int, overlap: int) -> Tensor:
    """Weights (size,) that rise over the first `overlap` pixels and fall over the last."""
    distance = torch.arange(1, size + 1).float()
    nearest = torch.minimum(distance, distance.flip(0))
    return (nearest / (overlap + 1)).clamp(max=1)


def sliding_window(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    size: tuple[int, int],
    overlap: int,
    align: int = 1,
) -> Tensor:
    """Run the model on the whole image, or in blended tiles where the image is larger than one.

    Args:
        model: (N, C, h, w) -> (N, K, h, w).
        image: (N, C, H, W).
        size: (height, width) of a tile in pixels.
        overlap: pixels that neighbouring tiles share at least.
        align: tiles start at multiples of it.

    Returns:
        (N, K, H, W) float32.
    """
    height, width = image.shape[-2:]
    if height <= size[0] and width <= size[1]:
        return model(image).float()
    rows, columns = (blend_weights(side, overlap).to(image.device) for side in size)
    total = image.new_zeros(height, width)
    logits: Tensor | None = None
    for top in tile_starts(height, size[0], overlap, align):
        for left in tile_starts(width, size[1], overlap, align):
            window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            tile = model(image[window]).float()
            weights = torch.outer(rows[: tile.shape[2]], columns[: tile.shape[3]])
            if logits is None:
                logits = tile.new_zeros(*tile.shape[:2], height, width)
            logits[window] += tile * weights
            total[window] += weights
    assert logits is not None  # there is at least one tile
    return logits.div_(total)
