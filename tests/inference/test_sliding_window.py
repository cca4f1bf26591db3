import weakref
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from unet import UNet
from unet.inference.sliding_window import Tiles, blend_weights, cut_weights, sliding_window


def place_tiles(
    size: int, tile: int, overlap: int, align: int = 1, **settings: int
) -> tuple[int, list[int]]:
    return Tiles((tile, tile), overlap, align, **settings).place(0, size)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 60, 100, 257])
@pytest.mark.parametrize("overlap", [0, 5, 16, 24])
@pytest.mark.parametrize("align", [1, 4, 8])
def test_tiles_cover_everything_and_overlap_enough(size: int, overlap: int, align: int) -> None:
    tile, starts = place_tiles(size, 32, overlap, align)
    assert starts[0] == 0
    assert size <= starts[-1] + tile < size + align
    assert tile <= 32
    assert all(pixels % align == 0 for pixels in (tile, *starts))
    for start, following in pairwise(starts):
        assert 0 < following - start <= tile - overlap


def test_tiles_are_as_few_and_as_small_as_possible() -> None:
    assert place_tiles(1000, 1000, 192, 16) == (1008, [0])
    assert place_tiles(2048, 1024, 192, 16) == (816, [0, 624, 1232])
    assert place_tiles(5, 1024, 192, 16) == (16, [0])


def test_a_tile_no_larger_than_the_overlap_is_refused() -> None:
    with pytest.raises(
        ValueError, match="got 32 pixels with an overlap of 30, expected at least 38"
    ):
        place_tiles(100, 32, 30, 8)


@pytest.mark.parametrize("size", [1, 32, 60, 100, 257])
@pytest.mark.parametrize("overlap", [0, 5, 16, 24])
@pytest.mark.parametrize("align", [1, 4, 8])
def test_every_pixel_has_weight_1_once_and_far_from_inner_edges(
    size: int, overlap: int, align: int
) -> None:
    tile, starts = place_tiles(size, 32, overlap, align)
    margin = overlap // 2
    taken = torch.zeros(starts[-1] + tile)
    for start, weights in zip(starts, cut_weights(starts, tile), strict=True):
        taken[start : start + tile] += weights
        kept = weights.nonzero().flatten()
        assert start == 0 or int(kept.min()) >= margin
        assert start == starts[-1] or int(kept.max()) < tile - margin
    assert torch.equal(taken, torch.ones_like(taken))


@pytest.mark.parametrize("overlap", [0, 5, 24])
def test_blend_weights_add_up_to_1(overlap: int) -> None:
    tile, starts = place_tiles(257, 32, overlap, 4)
    taken = torch.zeros(starts[-1] + tile)
    for start, weights in zip(starts, blend_weights(starts, tile, overlap), strict=True):
        taken[start : start + tile] += weights
        assert (weights > 0).all()
    torch.testing.assert_close(taken, torch.ones_like(taken))


def test_blend_weights_rise_and_fall_over_the_overlap() -> None:
    first, second = blend_weights([0, 5], 8, 3)
    torch.testing.assert_close(first, torch.tensor([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(second, first.flip(0))


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("size", [(20, 30), (64, 50), (65, 129)])
def test_a_model_of_single_pixels_gives_the_same_result_in_tiles(
    size: tuple[int, int], blend: bool
) -> None:
    image = torch.randn(3, *size)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * 2, x.square()], dim=1)

    tiled = sliding_window(model, image, Tiles((32, 48), 7, blend=blend))
    torch.testing.assert_close(tiled, model(image[None])[0])


def make_net(**settings: object) -> UNet:
    """A random network with batch norm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    net = UNet(in_channels=2, num_classes=3, **settings)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("resizing", [{}, {"downsampling": "conv"}, {"upsampling": "bilinear"}])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_tiles_equal_the_whole_image(
    levels: int, norm: str, resizing: dict[str, str], batch_size: int
) -> None:
    net = make_net(widths=(4, 6, 8, 8)[:levels], norm=norm, **resizing)
    overlap, unit = 2 * net.margin, net.output_stride
    tile = (overlap + 2 * unit, overlap + 5 * unit)  # not square
    for size in (
        (tile[0] + 37, 2 * tile[1] + 11),  # odd, and a few tiles each way
        (tile[0] + 1, tile[1] - 3),  # one side no larger than a tile
        (3, 2 * tile[1] + 1),  # smaller than the smallest padded input
        (tile[0] - 5, 7),
        (1, 1),
    ):
        image = torch.randn(2, *size)
        tiled = sliding_window(
            net, image, Tiles(tile, overlap, unit, blend=False, batch_size=batch_size)
        )
        torch.testing.assert_close(tiled, net(image[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_tiles_of_a_resnet_equal_the_whole_image(encoder: str) -> None:
    net = make_net(widths=(4, 4, 4, 4, 4), encoder=encoder)
    overlap = 2 * net.margin
    assert overlap == 576
    image = torch.randn(2, 41, overlap + 205)
    whole = net(image[None])[0]

    def difference(overlap: int) -> float:
        tiled = sliding_window(
            net, image, Tiles((overlap + 96, overlap + 96), overlap, 32, blend=False)
        )
        return float((tiled - whole).abs().max() / whole.abs().max())

    assert difference(overlap) < 3e-6
    assert difference(64) > 3e-5


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_unpadded_tiles_equal_the_whole_mirrored_image(
    levels: int, norm: str, batch_size: int
) -> None:
    net = make_net(widths=(4, 6, 8, 8)[:levels], norm=norm, padding="valid")
    unit = net.output_stride
    shown = net.geometry.input_side(3 * unit + 4)
    tile = (shown, shown + unit)  # not square
    for size in ((61, 75), (8 * unit, 3), (1, 1), (2 * unit, 3 * unit + 4)):
        image = net.mirror_context(torch.randn(2, *size))
        calls = []

        def model(
            tiles: torch.Tensor, net: UNet = net, calls: list[object] = calls
        ) -> torch.Tensor:
            calls.append(tiles.shape)
            return net(tiles)

        tiled = sliding_window(
            model,
            image,
            Tiles(
                tile,
                0,
                unit,
                blend=False,
                context=net.context,
                remainder=net.geometry.remainder,
                batch_size=batch_size,
            ),
        )
        torch.testing.assert_close(tiled, net(image[None])[0], rtol=1e-5, atol=1e-5)
        assert all(shape[2] <= tile[0] and shape[3] <= tile[1] for shape in calls), calls
        if max(size) > 60:
            assert sum(shape[0] for shape in calls) > 1


def test_tiles_of_the_paper() -> None:
    # 512 pixels in tiles of 388 at most: two tiles, as small as possible.
    assert place_tiles(512, 572, 4, 16, context=92, remainder=4) == (260, [0, 256])
    assert place_tiles(388, 572, 4, 16, context=92, remainder=4) == (388, [0])
    assert place_tiles(389, 572, 0, 16, context=92, remainder=4) == (212, [0, 192])


@pytest.mark.parametrize("downsampling", ["max_pool", "conv"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_less_overlap_or_tiles_off_the_grid_change_the_result(
    levels: int, downsampling: str
) -> None:
    net = make_net(widths=(4, 6, 8)[:levels], norm="none", downsampling=downsampling)
    image, unit, overlap = torch.randn(2, 131, 150), net.output_stride, 2 * net.margin
    whole, tile = net(image[None])[0], (overlap + 3 * unit, overlap + 3 * unit)

    def difference(overlap: int, align: int, blend: bool = False) -> float:
        tiled = sliding_window(net, image, Tiles(tile, overlap, align, blend))
        return float((tiled - whole).abs().max())

    assert difference(overlap, unit) < 1e-5
    assert difference(overlap - 2 * unit, unit) > 1e-4
    assert difference(overlap, unit, blend=True) > 1e-4
    if levels > 1:
        assert difference(overlap, 1) > 1e-4


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_with_statistics_of_the_tile_are_close(norm: str) -> None:
    net = make_net(widths=(8, 12, 16), norm=norm)
    image = torch.randn(2, 151, 163)
    whole = net(image[None])[0]
    tiled = sliding_window(net, image, Tiles((80, 84), 2 * net.margin, net.output_stride))
    assert not torch.allclose(tiled, whole, atol=1e-3)
    assert float((tiled - whole).abs().mean()) < 0.1 * float(whole.std())


def test_differences_between_tiles_fade_over_the_overlap() -> None:
    image = torch.arange(144.0)[:, None].expand(144, 40)[None]

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    def steepest(blend: bool) -> float:
        tiled = sliding_window(model, image, Tiles((64, 40), 24, blend=blend))
        return float(tiled.diff(dim=1).max())

    assert steepest(blend=False) == 40  # from tile to tile
    assert steepest(blend=True) == pytest.approx(40 / 25, rel=1e-4)


def test_at_most_one_batch_of_tiles_is_in_memory() -> None:
    alive, most, shapes = 0, 0, []

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def model(x: torch.Tensor) -> torch.Tensor:
        nonlocal alive, most
        alive += len(x)
        most = max(most, alive)
        for _ in x:
            weakref.finalize(x, gone)
        shapes.append(tuple(x.shape))
        return x * 2

    sliding_window(model, torch.zeros(1, 101, 86), Tiles((32, 48), 8, align=4, batch_size=3))
    assert most == 3
    # All of one size, 4 x 2 of them.
    assert shapes == [(3, 1, 32, 48), (3, 1, 32, 48), (2, 1, 32, 48)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("blend", [True, False])
def test_finishing_rows_of_tiles_equals_finishing_all_logits(blend: bool, batch_size: int) -> None:
    image, heights = torch.randn(3, 101, 86), []

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(dim=-1)

    def finish(logits: torch.Tensor) -> torch.Tensor:
        heights.append(logits.shape[1])
        return logits.argmax(0)

    tiles = Tiles((32, 48), 8, align=4, blend=blend, batch_size=batch_size)
    ids = sliding_window(model, image, tiles, finish=finish)
    assert torch.equal(ids, sliding_window(model, image, tiles).argmax(0))
    assert sum(heights) == 101
    assert max(heights) <= 32


def test_bfloat16_logits_become_float32() -> None:
    tiled = sliding_window(
        lambda x: x.bfloat16(), torch.ones(1, 70, 70), Tiles((32, 32), 8, blend=False)
    )
    assert tiled.dtype == torch.float32
    assert torch.equal(tiled, torch.ones(1, 70, 70))


def test_a_receptive_field_beyond_the_overlap_changes_only_the_seams() -> None:
    image, kernel = torch.randn(1, 70, 70), torch.randn(1, 1, 3, 3)

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, kernel, padding=1)

    tiled = sliding_window(model, image, Tiles((40, 70), 0, blend=False))
    rows = (tiled - model(image[None])[0]).abs().amax(dim=(0, 2)) > 1e-5
    assert rows.nonzero().flatten().tolist() == [34, 35]
