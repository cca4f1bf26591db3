"""Where tiles go, and how they blend."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest evenly spread tiles that overlap by at least `overlap`."""
    if size <= tile:
        return [0]
    last = math.ceil((size - tile) / (tile - overlap))
    return [round(i * (size - tile) / last) for i in range(last + 1)]


def blend_weights(size: int, overlap: int) -> Tensor:
    """Weights (size,) that rise over the first `overlap` pixels and fall over the last."""
    distance = torch.arange(1, size + 1).float()
    nearest = torch.minimum(distance, distance.flip(0))
    return (nearest / (overlap + 1)).clamp(max=1)


def sliding_window(
    model: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int], overlap: int
) -> Tensor:
    """Run the model on the whole image, or in blended tiles where the image is larger than one.

    Args:
        model: (N, C, h, w) -> (N, K, h, w).
        image: (N, C, H, W).
        size: (height, width) of a tile in pixels.
        overlap: pixels that neighbouring tiles share at least.

    Returns:
        (N, K, H, W) float32.
    """
    height, width = image.shape[-2:]
    tile_height, tile_width = min(size[0], height), min(size[1], width)
    if (tile_height, tile_width) == (height, width):
        return model(image).float()
    weights = torch.outer(
        blend_weights(tile_height, overlap), blend_weights(tile_width, overlap)
    ).to(image.device)
    total = image.new_zeros(height, width)
    logits: Tensor | None = None
    for top in tile_starts(height, tile_height, overlap):
        for left in tile_starts(width, tile_width, overlap):
            window = (..., slice(top, top + tile_height), slice(left, left + tile_width))
            tile = model(image[window]).float()
            if logits is None:
                logits = tile.new_zeros(*tile.shape[:2], height, width)
            logits[window] += tile * weights
            total[window] += weights
    assert logits is not None  # there is at least one tile
    return logits.div_(total)
