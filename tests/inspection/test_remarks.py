from pathlib import Path

import numpy as np
import pytest
from helpers import make_config
from PIL import Image

from unet.data.image_io import read_image
from unet.data.image_types import ReadOptions
from unet.inspection.check import CheckedData, check_data, describe
from unet.inspection.remarks import find_nodata

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _run_in_workdir(workdir: Path) -> None:
    """The cache is in runs/, relative to the current folder."""


def draw(seed: int, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """A bright box in noise, uint8, and its mask of 0 and 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    y, x = rng.integers(2, size[0] // 2), rng.integers(2, size[1] // 2)
    mask[y : y + 12, x : x + 17] = 1
    return (60 + 110 * mask + rng.integers(0, 20, size)).astype(np.uint8), mask


def write(root: Path, name: str, image: Image.Image, mask: Image.Image, exif: int = 1) -> None:
    for folder, picture in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        tags = Image.Exif()
        if folder == "images" and exif != 1:
            tags[274] = exif
        picture.save(root / folder / name, exif=tags)


def check(root: Path, *overrides: str) -> CheckedData:
    classes = "data.classes={ground: 0, box: 1}"
    return check_data(make_config(root, classes, "data.validation={stems: [a, b]}", *overrides))


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        (RNG.normal(300, 90, (40, 50)).astype(np.float32), -9999, -9999),
        (RNG.normal(300, 90, (40, 50)).astype(np.float32), -32768, -32768),
        (RNG.integers(100, 140, (40, 50), dtype=np.uint8), 0, 0),  # fills a border
        (RNG.integers(0, 200, (40, 50), dtype=np.uint8), 255, None),  # saturated pixels
        (RNG.normal(0.5, 0.1, (40, 50)).astype(np.float32), 1, None),
    ],
)
def test_a_value_far_from_all_others_is_likely_nodata(
    values: np.ndarray, value: float, expected: float | None
) -> None:
    values[:5, :30] = value
    assert find_nodata(values[None]) == expected


def test_one_outlier_and_constant_images_are_no_nodata() -> None:
    values = RNG.normal(0.5, 0.1, (40, 50)).astype(np.float32)
    values[0, 0] = -9999
    assert find_nodata(values[None]) is None
    assert find_nodata(np.zeros((1, 8, 8), np.uint8)) is None
    binary = np.zeros((1, 8, 8), np.uint8)
    binary[0, 4:] = 255
    assert find_nodata(binary) is None


@pytest.mark.parametrize("value", [-3.4028235e38, -7.654321e12, 1e30])
def test_a_single_huge_value_is_likely_nodata(tmp_path: Path, value: float) -> None:
    values = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    values[7, 8] = value
    found = find_nodata(values[None])
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif", 1, options=ReadOptions(nodata=float(f"{found:.9g}")))
    assert np.argwhere(np.isnan(image[0])).tolist() == [[7, 8]]


def test_undeclared_nodata_is_a_warning_and_the_setting_removes_it(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(["a.tif", "b.tif", "c.tif", "d.tif", "e.tif"]):
        image, mask = draw(i)
        values = image.astype(np.float32)
        if i in (1, 3):
            values[:6, :10] = -9999
        write(root, name, Image.fromarray(values), Image.fromarray(mask))
    warnings = check(root).warnings
    assert any("2 images, such as" in one and "data.nodata=-9999" in one for one in warnings)
    data = check(root, "data.nodata=-9999")
    assert not any("nodata" in warning for warning in data.warnings)
    text = describe(make_config(root, "data.classes={ground: 0, box: 1}"), data)
    assert f"missing pixels   {2 * 60 / (5 * 40 * 56):.2%}, in 2 images" in text
    # Neither in a statistic nor in a score.
    known = np.concatenate(
        [read_image(pair.images[0], 1)[0].ravel() for pair in data.train_pairs]
    ).astype(np.float64)
    known = known[known != -9999]
    normalization = data.normalization(make_config(root))
    assert normalization.mean.tolist() == pytest.approx([known.mean()])
    assert normalization.std.tolist() == pytest.approx([known.std()], rel=1e-4)
    assert data.train.class_pixels.sum() == known.size


def test_declared_nodata_is_missing_in_training(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(["a.tif", "b.tif", "c.tif", "d.tif"]):
        image, mask = draw(i)
        values = image.astype(np.float32)
        values[:6, :10] = -9999
        write(root, name, Image.fromarray(values), Image.fromarray(mask))
        Image.fromarray(values).save(root / "images" / name, tiffinfo={42113: "-9999"})
    data = check(root)
    assert data.train.missing.tolist() == [60, 60]
    assert not any("nodata" in warning for warning in data.warnings)


def test_a_mask_that_was_not_turned_with_its_image_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(["a.png", "b.png", "c.png", "d.png"]):
        image, mask = draw(i)
        write(root, name, Image.fromarray(image), Image.fromarray(mask), exif=3 if i else 1)
    warnings = check(root).warnings
    assert any("3 images, such as" in one and "data.exif=ignore" in one for one in warnings)
    assert not any("EXIF" in one for one in check(root, "data.exif=ignore").warnings)


def test_a_mask_of_the_size_before_the_turn_names_the_setting(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(["a.png", "b.png", "c.png", "d.png"]):
        image, mask = draw(i)
        write(root, name, Image.fromarray(image), Image.fromarray(mask), exif=6)
    (error,) = [one for one in check(root).errors if "4 files" in one]
    assert "got a mask of 40 x 56 pixels (height x width), expected 56 x 40" in error
    assert "data.exif=ignore if EXIF has turned only the image" in error
    assert not check(root, "data.exif=ignore").errors


def test_masks_whose_palettes_differ_in_order_are_an_error(tmp_path: Path) -> None:
    root = tmp_path / "data"
    colours = [(10, 10, 10), (200, 30, 40)]
    for i, name in enumerate(["a.png", "b.png", "c.png", "d.png", "e.png"]):
        image, mask = draw(i)
        swapped = i == 3
        indexed = Image.fromarray(1 - mask if swapped else mask, mode="P")
        indexed.putpalette([band for c in (colours[::-1] if swapped else colours) for band in c])
        write(root, name, Image.fromarray(image), indexed)
    (error,) = check(root).errors
    assert "d.png: got the palette's colour" in error
    assert error.endswith("would fit: {ground: [10, 10, 10], box: [200, 30, 40]}")
    by_colour = check(root, "data.classes={ground: [10, 10, 10], box: [200, 30, 40]}")
    assert not by_colour.errors


def test_a_converted_image_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i, name in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
        image, mask = draw(i)
        colours = Image.fromarray(image).convert("RGB")
        write(root, name, colours.convert("CMYK") if i == 2 else colours, Image.fromarray(mask))
        Image.fromarray(mask).save(root / "masks" / f"{Path(name).stem}.png")
        (root / "masks" / name).unlink()
    warnings = check(root, "model.in_channels=3").warnings
    assert any("c.jpg: was converted from CMYK to RGB" in warning for warning in warnings)


def test_colours_of_indices_that_a_mask_does_not_have_do_not_matter(tmp_path: Path) -> None:
    """Writers fill the rest of a palette with anything."""
    root = tmp_path / "data"
    for i, name in enumerate(["a.png", "b.png", "c.png", "d.png", "e.png"]):
        image, mask = draw(i)
        mask *= i % 2  # a, c and e have no box
        indexed = Image.fromarray(mask, mode="P")
        indexed.putpalette([10, 10, 10, *([200, 30, 40] if i % 2 else [7, 7, 7])])
        write(root, name, Image.fromarray(image), indexed)
    assert not check(root).errors
