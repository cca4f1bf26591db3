from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from helpers import make_config, write_pairs
from torchvision.transforms import v2

from unet.build import build_reader, list_pairs
from unet.data.custom_transform import apply_transform
from unet.data.dataset import SegmentationDataset

IMAGE = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
MASK = np.arange(24, dtype=np.uint8).reshape(4, 6) // 5 % 3


def apply(transform: Any, image: np.ndarray = IMAGE, seed: int = 0) -> tuple[np.ndarray, ...]:
    return apply_transform(transform, image, MASK, seed, num_classes=3)


@pytest.mark.parametrize(
    "transform",
    [
        lambda image, mask: (image[:, ::-1], mask[:, ::-1]),
        lambda image, mask: {"image": image[:, ::-1], "mask": mask[:, ::-1]},
        albumentations.Compose([albumentations.HorizontalFlip(p=1)]),
        v2.Compose([v2.RandomHorizontalFlip(p=1)]),
    ],
)
def test_functions_albumentations_and_torchvision_transform_image_and_mask(transform: Any) -> None:
    image, mask = apply(transform)
    assert image.dtype == mask.dtype == np.uint8
    assert np.array_equal(image, IMAGE[:, :, ::-1])
    assert np.array_equal(mask, MASK[:, ::-1])


@pytest.mark.parametrize(
    "transform",
    [
        albumentations.Compose(
            [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
        ),
        v2.Compose([v2.RandomHorizontalFlip(p=0.5), v2.RandomVerticalFlip(p=0.5)]),
    ],
)
def test_the_random_numbers_of_a_transform_depend_on_the_seed_alone(transform: Any) -> None:
    results = [apply(transform, seed=seed)[1].tobytes() for seed in range(40)]
    assert results == [apply(transform, seed=seed)[1].tobytes() for seed in range(40)]
    # Each flip is decided on its own.
    assert len(set(results)) == 4


def test_a_transform_leaves_the_global_random_numbers_as_they_were() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    apply(v2.RandomHorizontalFlip(p=0.5))
    apply(lambda image, mask: (image + np.random.randint(3), mask))  # noqa: NPY002
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_a_transform_may_change_the_size_and_return_floats() -> None:
    image, mask = apply(lambda image, mask: (image[:3, :2] / 255, mask[:3, :2]))
    assert image.dtype == np.float32
    assert image.shape == (2, 3, 2)
    assert mask.shape == (3, 2)


def test_a_transform_that_works_in_place_does_not_change_the_cached_image() -> None:
    def darken(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image[:], mask[:] = 0, 255
        return image, mask

    grey, ids = np.full((1, 4, 6), 7, np.uint8), MASK.copy()
    apply_transform(darken, grey, ids, 0, 3)
    apply_transform(v2.Lambda(lambda x: x.fill_(1)), grey, ids, 0, 3)
    assert grey.min() == 7
    assert np.array_equal(ids, MASK)


@pytest.mark.parametrize(
    ("transform", "problem"),
    [
        (
            lambda **arrays: arrays["image"],
            "got a result of type ndarray, expected an image and a mask",
        ),
        (lambda image, mask: (image[0], mask), r"an image of shape \(6, 2\), expected \(H, W, 2\)"),
        (lambda image, mask: (image.astype(int), mask), "an image of int64, expected uint8 as"),
        (lambda image, mask: (image[:2], mask), r"a mask of shape \(4, 6\), expected \(2, 6\)"),
        (lambda image, mask: (image, mask + 1), "got 3 in a mask, expected class ids from 0 to 2"),
    ],
)
def test_what_a_transform_may_not_return_is_named(transform: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^transform: got .*{problem}|^transform: {problem}"):
        apply(transform)


def test_samples_of_a_transform_depend_on_seed_pass_and_index(tmp_path: Any) -> None:
    write_pairs(tmp_path / "data", 2)
    config = make_config(tmp_path / "data")
    dataset = SegmentationDataset(
        list_pairs(config)[0],
        build_reader(config),
        None,
        transform=v2.Compose([v2.RandomCrop(16), v2.RandomHorizontalFlip()]),
    )
    first, again, other = (dataset[place][0] for place in ((0, 1), (0, 1), (1, 1)))
    assert first.shape == (1, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
