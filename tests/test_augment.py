import numpy as np
import pytest
import torch

from unet.augment import Augment

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


def test_nothing_asked_changes_nothing() -> None:
    target = blobs()
    image, same = Augment()(target[None].float(), target, np.random.default_rng(0))
    assert torch.equal(same, target)
    torch.testing.assert_close(image[0], target.float(), atol=1e-4, rtol=0)


def test_flips_and_turns_move_whole_pixels() -> None:
    target = torch.arange(30 * 41).reshape(30, 41) % 251
    augment = Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True, crop=(30, 41))
    square = Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True, crop=(30, 30))
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
        _, out = Augment(crop=(8, 11))(target[None].float(), target, np.random.default_rng(seed))
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
    image, out = Augment(crop=(25, 38), **EVERYTHING)(
        target[None].float(), target, np.random.default_rng(seed)
    )
    # The image is the target as float. Half-way between two pixels nearest may pick either.
    certain = (image[0] - 0.5).abs() > 0.3
    assert certain.float().mean() > 0.7
    assert torch.equal(out[certain], (image[0] > 0.5).long()[certain])


@pytest.mark.parametrize("crop", [(25, 38), (90, 120), None])
def test_no_class_is_invented_inside_or_at_the_borders(crop: tuple[int, int] | None) -> None:
    for seed in range(10):
        target = blobs(seed)
        target[:4] = 255
        _, out = Augment(crop=crop, **EVERYTHING)(
            target[None].float(), target, np.random.default_rng(seed)
        )
        assert set(out.unique().tolist()) <= {3, 7, 255}
        assert out.shape == (crop or target.shape)


def test_borders_are_mirrored() -> None:
    target = torch.tensor([[1, 2, 3]])
    _, out = Augment(crop=(1, 9))(target[None].float(), target, np.random.default_rng(0))
    assert out.tolist() == [[3, 2, 1, 1, 2, 3, 3, 2, 1]]


def test_scale_magnifies() -> None:
    target = torch.zeros(40, 40, dtype=torch.long)
    target[15:25, 15:25] = 1
    _, out = Augment(scale=(2.0, 2.0))(target[None].float(), target, np.random.default_rng(0))
    # Twice as wide and high; the window of 20 x 20 pixels may cut some of it off.
    assert 200 <= int(out.sum()) <= 400


def test_elastic_displacements_have_the_given_standard_deviation() -> None:
    augment = Augment(elastic_std=5.0, elastic_spacing=10)
    moves = torch.stack(
        [augment._displacements(41, 41, np.random.default_rng(seed)) for seed in range(200)]
    )
    points = moves[:, :, ::10, ::10]  # about where the displacements were drawn
    assert float(points.std()) == pytest.approx(5, rel=0.2)
    assert float(moves.mean()) == pytest.approx(0, abs=0.5)


def test_brightness_shifts_and_contrast_scales_the_image_only() -> None:
    target = blobs()
    image = torch.randn(2, 31, 44)
    out, same = Augment(brightness=0.5, contrast=0.5)(image, target, np.random.default_rng(3))
    gain = out.std() / image.std()
    assert 0.5 <= float(gain) <= 1.5
    assert float(gain) != pytest.approx(1, abs=0.01)
    torch.testing.assert_close(out, image * gain + (out - image * gain).mean(), atol=1e-3, rtol=0)
    assert torch.equal(same, target)


def test_the_same_generator_gives_the_same_sample() -> None:
    target = blobs()
    augment = Augment(crop=(20, 20), brightness=1.0, contrast=0.5, **EVERYTHING)
    first = augment(target[None].float(), target, np.random.default_rng(9))
    again = augment(target[None].float(), target, np.random.default_rng(9))
    other = augment(target[None].float(), target, np.random.default_rng(10))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
