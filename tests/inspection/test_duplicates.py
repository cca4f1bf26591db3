import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import make_config, write_pairs
from PIL import Image

from unet.inspection.check import check_data
from unet.inspection.propose import propose

pytestmark = pytest.mark.usefixtures("workdir")


def draw_texture(seed: int) -> np.ndarray:
    """A random image with structures of several sizes, not square."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.uniform(0, 255, (n, n)).astype(np.float32)).resize((96, 80))
        for n in (5, 12, 40)
    ]
    return np.mean([np.asarray(layer) for layer in layers], axis=0).clip(0, 255).astype(np.uint8)


def compress(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    with Image.open(file) as image:
        return np.asarray(image)


COPIES = {
    "turned": lambda image: np.rot90(image),
    "mirrored": lambda image: image[:, ::-1],
    "turned and mirrored": lambda image: np.rot90(image[:, ::-1], 3),
    "compressed": compress,
    "brighter": lambda image: (image * 1.1 + 8).clip(0, 255).astype(np.uint8),
    "much brighter": lambda image: (image * 1.5).clip(0, 255).astype(np.uint8),
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((72, 60))),
    "half as large": lambda image: np.asarray(Image.fromarray(image).resize((48, 40))),
    "much smaller": lambda image: np.asarray(Image.fromarray(image).resize((38, 32))),
}


def write_textures(root: Path, images: dict[str, np.ndarray]) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for stem, image in images.items():
        mask = np.where(image > 128, 200, 0).astype(np.uint8)
        Image.fromarray(np.ascontiguousarray(image)).save(root / "images" / f"{stem}.png")
        Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


@pytest.mark.parametrize("how", COPIES)
def test_a_changed_copy_across_the_split_is_a_warning(tmp_path: Path, how: str) -> None:
    images = {f"{i}_a": draw_texture(i) for i in range(5)}
    write_textures(tmp_path / "data", {**images, "2_b": COPIES[how](images["2_a"])})
    config = make_config(tmp_path / "data", "data.validation={stems: [2_b]}", "augment.crop=[8,8]")
    data = check_data(config)
    assert not data.errors
    (warning,) = (one for one in data.warnings if "nearly the same" in one)
    assert "images/2_a.png: is nearly the same as the validation image" in warning
    assert "images/2_b.png, perhaps turned" in warning
    assert warning.endswith("leave out one of them with data.exclude")


def test_the_group_that_keeps_similar_images_together_is_named(tmp_path: Path) -> None:
    images = {f"img_{i}": draw_texture(i) for i in range(6)}
    copies = {f"{stem}_turned": np.rot90(image, 2) for stem, image in images.items()}
    write_textures(tmp_path / "data", {**images, **copies})
    settings = ["data.validation={fraction: 0.3}", "augment.crop=[8,8]"]
    (warning,) = check_data(make_config(tmp_path / "data", *settings)).warnings
    assert "keep them together with data.validation.group='" in warning
    group = warning.split("data.validation.group=")[1].strip("'")
    settings[0] = f"data.validation={{fraction: 0.3, group: '{group}'}}"
    assert not check_data(make_config(tmp_path / "data", *settings)).warnings
    text = propose(tmp_path / "data", "mine")
    assert "# 6 pairs of images are nearly the same, such as " in text
    proposed = text.split("together in training or in validation:\n#")[1].split("\n")[0]
    assert yaml.safe_load(proposed) == {"validation": {"fraction": 0.2, "group": group}}


def test_images_of_similar_objects_are_not_similar(data_root: Path) -> None:
    write_pairs(data_root / "held_out", 40, seed=9)
    config = make_config(
        data_root, "data.validation={images: held_out/images, masks: held_out/masks}"
    )
    assert not check_data(config).warnings


def test_an_image_with_two_different_masks_is_an_error_that_names_both(data_root: Path) -> None:
    for folder, name in (("images", "1.png"), ("masks", "2.png")):
        pixels = (data_root / folder / name).read_bytes()
        (data_root / folder / "again.png").write_bytes(pixels)
    errors = check_data(make_config(data_root)).errors
    assert len(errors) == 1
    assert "images/again.png with " in errors[0]
    assert "masks/again.png: got the same pixels as in " in errors[0]
    assert "images/1.png with " in errors[0]
    assert "masks/1.png, but another mask, expected one for an image" in errors[0]
