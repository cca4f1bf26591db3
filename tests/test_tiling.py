from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from unet.tiling import blend_weights, sliding_window, tile_starts


@pytest.mark.parametrize("size", [1, 31, 32, 33, 60, 100, 257])
@pytest.mark.parametrize("overlap", [0, 5, 31])
def test_tiles_cover_everything_and_overlap_enough(size: int, overlap: int) -> None:
    for align in (1, 8):
        starts = tile_starts(size, 32, min(overlap, 32 - align), align)
        assert starts[0] == 0
        assert size <= starts[-1] + 32 < max(size, 32) + align
        assert all(start % align == 0 for start in starts)
        for start, following in pairwise(starts):
            assert 0 < following - start <= 32 - min(overlap, 32 - align)


def test_weights_rise_and_fall_over_the_overlap() -> None:
    weights = blend_weights(8, 3)
    assert weights.tolist() == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("size", [(20, 30), (64, 50), (65, 129)])
def test_a_model_of_pixels_gives_the_same_in_tiles(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * 2, x.square()], dim=1)

    torch.testing.assert_close(sliding_window(model, image, (32, 48), 7), model(image))


def test_a_convolution_gives_the_same_in_tiles_away_from_the_seams() -> None:
    image, kernel = torch.randn(1, 1, 70, 70), torch.randn(1, 1, 3, 3)

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, kernel, padding=1)

    whole, tiled = model(image), sliding_window(model, image, (32, 32), 8)
    close = (whole - tiled).abs() < 1e-5
    assert close.float().mean() > 0.8


def test_an_image_no_larger_than_a_tile_is_not_cut() -> None:
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x

    sliding_window(model, torch.zeros(1, 1, 32, 20), (32, 48), 7)
    assert seen == [(1, 1, 32, 20)]
