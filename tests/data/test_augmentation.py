import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unet.data.augmentation import Augmentation
from unet.data.image_types import cut

EVERYTHING = {
    "scale": (0.6, 1.6),
    "flip_horizontal": True,
    "flip_vertical": True,
    "quarter_turns": True,
    "rotate": 30.0,
    "elastic_std": 4.0,
    "elastic_spacing": 12,
}


def blobs(seed: int = 0, values: tuple[int, int] = (3, 7)) -> torch.Tensor:
    """A target (31, 44) of two class ids in smooth shapes."""
    y, x = torch.meshgrid(torch.arange(31.0), torch.arange(44.0), indexing="ij")
    wave = torch.sin(y / 5 + seed) + torch.cos(x / 6 - seed)
    return torch.where(wave > 0, values[1], values[0])


def test_the_defaults_change_nothing() -> None:
    target = blobs()
    image, same = Augmentation()(target[None].float(), target, np.random.default_rng(0))
    assert torch.equal(same, target)
    torch.testing.assert_close(image[0], target.float(), atol=1e-4, rtol=0)


def test_flips_and_turns_move_whole_pixels() -> None:
    target = torch.arange(30 * 41).reshape(30, 41) % 251
    augment = Augmentation(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, crop=(30, 41)
    )
    square = Augmentation(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, crop=(30, 30)
    )
    seen = set()
    for seed in range(100):
        image, out = square(
            target[None, :, :30].float(), target[:, :30], np.random.default_rng(seed)
        )
        candidates = [
            torch.rot90(t, k) for t in (target[:, :30], target[:, :30].flip(1)) for k in range(4)
        ]
        matches = [i for i, candidate in enumerate(candidates) if torch.equal(out, candidate)]
        assert len(matches) == 1
        seen.add(matches[0])
        torch.testing.assert_close(image[0], out.float(), atol=1e-2, rtol=0)
        # Mirrored where a turned crop is larger than the image: still whole pixels.
        image, out = augment(target[None].float(), target, np.random.default_rng(seed))
        torch.testing.assert_close(image[0], out.float(), atol=1e-2, rtol=0)
    assert seen == set(range(8))


def test_a_crop_is_a_window_of_the_image() -> None:
    target = torch.arange(20 * 30).reshape(20, 30) % 251
    tops = set()
    for seed in range(60):
        _, out = Augmentation(crop=(8, 11))(
            target[None].float(), target, np.random.default_rng(seed)
        )
        places = [
            (top, left)
            for top in range(13)
            for left in range(20)
            if torch.equal(out, target[top : top + 8, left : left + 11])
        ]
        assert places
        tops.add(places[0][0])
    assert {0, 12} <= tops  # up to the borders


@pytest.mark.parametrize("seed", range(20))
def test_the_mask_follows_the_image(seed: int) -> None:
    target = blobs(seed, values=(0, 1))
    image, out = Augmentation(crop=(25, 38), **EVERYTHING)(
        target[None].float(), target, np.random.default_rng(seed)
    )
    # The image is the target as float. Half-way between two pixels nearest may pick either.
    certain = (image[0] - 0.5).abs() > 0.3
    assert certain.float().mean() > 0.7
    assert torch.equal(out[certain], (image[0] > 0.5).long()[certain])


@pytest.mark.parametrize("crop", [(25, 38), (90, 120), None])
def test_no_new_class_appears(crop: tuple[int, int] | None) -> None:
    for seed in range(10):
        target = blobs(seed)
        target[:4] = 255
        _, out = Augmentation(crop=crop, **EVERYTHING)(
            target[None].float(), target, np.random.default_rng(seed)
        )
        assert set(out.unique().tolist()) <= {3, 7, 255}
        assert out.shape == (crop or target.shape)


def test_borders_are_mirrored() -> None:
    target = torch.tensor([[1, 2, 3]])
    _, out = Augmentation(crop=(1, 9))(target[None].float(), target, np.random.default_rng(0))
    assert out.tolist() == [[3, 2, 1, 1, 2, 3, 3, 2, 1]]


def centred(**settings: object) -> torch.Tensor:
    """A square of 10 x 10 in the middle of 41 x 41, with a crop of the middle after `settings`."""
    target = torch.zeros(41, 41, dtype=torch.long)
    target[15:26, 15:26] = 1
    augment = Augmentation(crop=(81, 81), **settings)  # larger than the image: centred on it
    return augment(target[None].float(), target, np.random.default_rng(0))[1][20:61, 20:61]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_scale_magnifies(scale: float) -> None:
    out = centred(scale=(scale, scale))
    if scale < 1:  # around it are mirrored ones
        out = out[10:31, 10:31]
    assert int(out.sum()) == pytest.approx((11 * scale) ** 2, rel=0.2)


def test_scales_are_drawn_over_the_whole_range() -> None:
    augment = Augmentation(scale=(0.5, 2.0), crop=(9, 9))
    grids = [augment._grid(99, 99, np.random.default_rng(seed), None) for seed in range(200)]
    # A step of one pixel in the crop is 2 / 99 / scale in grid_sample's units.
    scales = [2 / 99 / float(grid[0, 1, 0] - grid[0, 0, 0]) for grid in grids]
    assert 0.5 <= min(scales) < 0.53
    assert 1.9 < max(scales) <= 2.001
    assert float(np.median(scales)) == pytest.approx(1, rel=0.15)  # as often smaller as larger


def test_rotation_turns_by_up_to_the_given_angle() -> None:
    augment = Augmentation(rotate=30, crop=(9, 9))
    angles = []
    for seed in range(200):
        grid = augment._grid(99, 99, np.random.default_rng(seed), None)
        step = grid[0, 1] - grid[0, 0]
        angles.append(math.degrees(math.atan2(float(step[1]), float(step[0]))))
    assert -30.01 <= min(angles) < -28
    assert 28 < max(angles) <= 30.01


def test_elastic_deformation_bends_what_was_straight() -> None:
    straight, bent = centred(), centred(elastic_std=6.0, elastic_spacing=10)
    assert (straight != bent).float().mean() > 0.02


def test_elastic_displacements_have_the_given_standard_deviation() -> None:
    augment = Augmentation(elastic_std=5.0, elastic_spacing=10)
    moves = torch.stack(
        [augment._displacements(41, 41, np.random.default_rng(seed)) for seed in range(200)]
    )
    points = moves[:, :, ::10, ::10]  # about where the displacements were drawn
    assert float(points.std()) == pytest.approx(5, rel=0.2)
    assert float(moves.mean()) == pytest.approx(0, abs=0.5)


def test_the_papers_elastic_grid_is_3_x_3_points() -> None:
    """A spacing of half of the crop: arXiv 1505.04597, section 3.1, with 10 pixels."""
    augment = Augmentation(crop=(572, 572), elastic_std=10.0, elastic_spacing=286)
    drawn = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    moves = augment._displacements(572, 572, np.random.default_rng(0))
    # The points lie in the corners and half-way; between two pixels, half-way is the mean of four.
    corners = torch.from_numpy(drawn[:, ::2, ::2]).float()
    torch.testing.assert_close(moves[:, ::571, ::571], corners, rtol=0, atol=1e-4)
    middle = torch.from_numpy(drawn[:, 1, 1]).float()
    torch.testing.assert_close(moves[:, 285:287, 285:287].mean((1, 2)), middle, rtol=0, atol=1e-2)


def test_elastic_points_are_as_few_as_the_spacing_allows() -> None:
    augment = Augmentation(elastic_std=1.0, elastic_spacing=10)
    for side, points in ((2, 2), (11, 2), (12, 3), (20, 3), (21, 3), (22, 4)):
        rng, same = np.random.default_rng(0), np.random.default_rng(0)
        augment._displacements(side, side, rng)
        same.normal(size=(2, points, points))
        assert rng.normal() == same.normal(), side


# Of an unpadded network with two levels.
UNPADDED = {"context": 8, "size_multiple": 2, "size_remainder": 4}


@pytest.mark.parametrize("crop", [(44, 52), None])
def test_an_unpadded_networks_context_is_real_or_mirrored(crop: tuple[int, int] | None) -> None:
    target = torch.arange(31 * 44).reshape(31, 44) % 251
    augment = Augmentation(crop=crop, flip_horizontal=True, **UNPADDED)
    around, tops = UNPADDED["context"], set()
    mirrored = np.pad(target.numpy(), around + 4, mode="symmetric")
    for seed in range(60):
        image, out = augment(target[None].float(), target, np.random.default_rng(seed))
        torch.testing.assert_close(image[0], out.float(), atol=1e-2, rtol=0)
        sides = out.shape
        assert sides == (crop or (32 + 2 * around, 44 + 2 * around))
        places = [
            (top, left)
            for one in (out, out.flip(1))
            for top in range(mirrored.shape[0] - sides[0] + 1)
            for left in range(mirrored.shape[1] - sides[1] + 1)
            if np.array_equal(one, mirrored[top : top + sides[0], left : left + sides[1]])
        ]
        assert places
        tops.add(places[0][0] - 4)
    # The pixels with logits are inside of the image, up to its borders; without a crop all of it.
    assert tops == (set(range(31 - (44 - 2 * around) + 1)) if crop else {-1})


@pytest.mark.parametrize("crop", [(9, 12), (25, 40), (120, 150), None])
def test_only_the_window_of_a_crop_is_read_and_the_sample_is_that_of_the_whole_image(
    crop: tuple[int, int] | None,
) -> None:
    """Bit for bit, although the rounding of grid_sample depends on the size of its input."""
    image, target = torch.rand(3, 131, 157), torch.randint(0, 255, (131, 157))
    weights, is_smaller = torch.rand(131, 157), []
    options: list[dict[str, Any]] = [{}, EVERYTHING, {"context": 20, "rotate": 20}]
    for seed in range(30):
        augment = Augmentation(crop=crop, **options[seed % 3])
        place = augment.place((131, 157), np.random.default_rng(seed))
        expected = [
            F.grid_sample(
                maps[None].float(),
                place.grid[None],
                mode=mode,
                padding_mode="reflection",
                align_corners=False,
            )[0]
            for maps, mode in (
                (torch.cat([image, weights[None]]), "bilinear"),
                (target[None], "nearest"),
            )
        ]
        unread = torch.ones(131, 157, dtype=torch.bool)
        cut(unread, place.window)[...] = False
        known = image.masked_fill(unread, math.nan), target.masked_fill(unread, 255)
        weighted = weights.masked_fill(unread, math.nan)
        out, ids, heavy = augment(*known, np.random.default_rng(seed), weights=weighted)
        assert torch.equal(torch.cat([out, heavy[None]]), expected[0])
        assert torch.equal(ids, expected[1][0].long())
        is_smaller.append(bool(unread.any()))
    assert all(is_smaller) or crop != (9, 12)


def test_a_rare_pixel_is_where_an_unpadded_network_has_logits() -> None:
    target = torch.zeros(200, 200, dtype=torch.long)
    target[90, 120] = 1
    augment = Augmentation(crop=(52, 44), **UNPADDED)
    inside = UNPADDED["context"] + 3
    for seed in range(50):
        _, out = augment(target[None].float(), target, np.random.default_rng(seed), (90, 120))
        assert out[inside:-inside, inside:-inside].any()


def test_brightness_shifts_and_contrast_scales_the_image_only() -> None:
    target = blobs()
    image = torch.randn(2, 31, 44)
    out, same = Augmentation(brightness=0.5, contrast=0.5)(image, target, np.random.default_rng(3))
    gain = out.std() / image.std()
    assert 0.5 <= float(gain) <= 1.5
    assert float(gain) != pytest.approx(1, abs=0.01)
    shift = (out - image * gain).mean()
    assert 0.01 < abs(float(shift)) <= 0.5
    torch.testing.assert_close(out, image * gain + shift, atol=1e-3, rtol=0)
    assert torch.equal(same, target)


def test_the_same_generator_gives_the_same_sample() -> None:
    target = blobs()
    augment = Augmentation(crop=(20, 20), brightness=1.0, contrast=0.5, **EVERYTHING)
    first = augment(target[None].float(), target, np.random.default_rng(9))
    again = augment(target[None].float(), target, np.random.default_rng(9))
    other = augment(target[None].float(), target, np.random.default_rng(10))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_weights_are_resampled_as_the_image() -> None:
    target, weights = blobs(), torch.rand(blobs().shape)
    image = torch.stack([weights, torch.randn(weights.shape)])
    for crop in (None, (25, 38), (90, 90)):  # the last is mirrored
        augment = Augmentation(crop=crop, **EVERYTHING)
        for seed in range(5):
            rngs = [np.random.default_rng(seed) for _ in range(2)]
            plain = augment(image, target, rngs[0])
            out, same, moved = augment(image, target, rngs[1], weights=weights)
            assert torch.equal(out, plain[0])
            assert torch.equal(same, plain[1])
            assert torch.equal(moved, out[0])  # without brightness and contrast
