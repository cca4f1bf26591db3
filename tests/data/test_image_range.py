import numpy as np
import pytest

from unet.data.image_io import to_float
from unet.data.image_range import ImageRange, image_range

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(20, 60 + 30 * i, (1, 20, 30), dtype=np.uint8) for i in range(4)]


def make_range() -> ImageRange:
    floats = [to_float(image).astype(np.float64) for image in IMAGES]
    return image_range(
        ["uint8"] * 4,
        np.array([[image.size] for image in floats]),
        np.array([[image.sum()] for image in floats]),
        np.array([[(image**2).sum()] for image in floats]),
    )


def test_the_range_is_that_of_the_images() -> None:
    found = make_range()
    means = [to_float(image).mean() for image in IMAGES]
    assert found.mean == pytest.approx((min(means), max(means)), rel=1e-5)
    assert found.dtypes == ("uint8",)
    assert ImageRange(**found.to_dict()) == found
    assert all(found.compare(to_float(image)) is None for image in IMAGES)


@pytest.mark.parametrize(
    "image",
    [
        IMAGES[1].astype(np.uint16) * 16,  # 12 bits in 16
        IMAGES[0].astype(np.uint16),  # 8 bits in 16
        IMAGES[0].astype(np.float32),  # not from 0 to 1
        np.full((1, 20, 30), 40, np.uint8),
    ],
)
def test_an_image_of_another_brightness_is_described(image: np.ndarray) -> None:
    text = make_range().compare(to_float(image))
    assert text is not None
    assert "those of the training images (uint8)" in text


def test_the_same_image_with_more_bits_is_near() -> None:
    image = IMAGES[1].astype(np.uint16) * 257
    assert make_range().compare(to_float(image)) is None
    missing = np.where(IMAGES[1] < 40, np.nan, to_float(IMAGES[1]))
    assert make_range().compare(missing) is None
    assert make_range().compare(np.full((1, 2, 2), np.nan, np.float32)) is None
