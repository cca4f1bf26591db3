from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.discovery import find_pairings

RNG = np.random.default_rng(0)


def write(root: Path, image: str, mask: str) -> None:
    """A noisy image, and a mask with a rectangle."""
    pixels = np.zeros((70, 90), np.uint8)
    pixels[5:60, 4:18] = 255
    noisy = (pixels * 0.4 + RNG.normal(60, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
    for name, array in ((image, noisy), (mask, pixels)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name)


@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        ("images/{}.png", "masks/{}.png", "images", "masks"),
        ("a/{}.jpg", "b/{}.png", "a", "b"),
        ("all/{}.png", "all/{}_mask.png", "all", "all/{stem}_mask"),
        ("all/{}.jpg", "all/{}.png", "all/{stem}.jpg", "all/{stem}.png"),
        ("x/img_{}.png", "y/lab_{}.png", "x/img_{stem}", "y/lab_{stem}"),
        ("x/{}_img.png", "x/{}_seg.png", "x/{stem}_img", "x/{stem}_seg"),
        ("day{}/raw/a{}.png", "gt/day{}/a{}.png", "day*/raw", "gt/day*"),
        ("images/p/{}.png", "masks/p/{}.png", "images/p", "masks/p"),
        ("{}/image.png", "{}/mask.png", "{stem}/image", "{stem}/mask"),
        ("{}/images/a.png", "{}/masks/a.png", "{stem}/images/a", "{stem}/masks/a"),
    ],
)
def test_files_are_paired_however_they_are_named(
    tmp_path: Path, image: str, mask: str, images: str, masks: str
) -> None:
    root = tmp_path / "data"
    for i in range(8):
        write(root, image.format(i, i), mask.format(i, i))
    pairing = find_pairings(root)[0]
    assert (pairing.images, pairing.masks) == (images, masks)
    assert len(pairing.files) == 8


def test_equal_names_in_several_folders_are_paired(tmp_path: Path) -> None:
    for folder in ("ann", "ben"):
        for i in range(4):
            write(tmp_path, f"images/{folder}/{i}.png", f"masks/{folder}/{i}.png")
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == ("images", "masks")
    assert sorted(pairing.files) == [f"{name}/{i}" for name in ("ann", "ben") for i in range(4)]


@pytest.mark.parametrize("count", [4, 30])
@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        ("{}/photo.jpg", "{}/label.png", "{stem}/photo", "{stem}/label"),
        ("train/{}/photo.png", "train/{}/label.png", "train/{stem}/photo", "train/{stem}/label"),
        ("{}/images/{}.png", "{}/masks/{}.png", "*/images", "*/masks"),
        ("{}/{}_img.png", "{}/{}_mask.png", "{stem}_img", "{stem}_mask"),
        ("{}/a{}.png", "{}/a{}_mask.png", ".", "{stem}_mask"),
    ],
)
def test_a_folder_for_each_image_or_patient_is_understood(
    tmp_path: Path, image: str, mask: str, images: str, masks: str, count: int
) -> None:
    for i in range(count):
        name = "ab"[i // 26] + chr(ord("a") + i % 26)  # no number
        write(tmp_path, image.format(name, name), mask.format(name, name))
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == (images, masks)
    assert len(pairing.files) == count


def test_several_masks_of_an_image_are_all_found(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png")
        write(tmp_path, f"images/{i}.png", f"instances/{i}.png")
    assert {(one.images, one.masks) for one in find_pairings(tmp_path)} == {
        ("images", "masks"),
        ("images", "instances"),
    }


def test_images_of_images_are_no_pairs(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"raw/{i}.png", f"x/{i}_mask.png")
        Image.fromarray(RNG.integers(0, 256, (70, 90), np.uint8)).save(tmp_path / f"x/{i}.png")
    pairings = {(one.images, one.masks) for one in find_pairings(tmp_path)}
    assert ("raw", "x/{stem}_mask") in pairings
    assert not any(masks in {"raw", "x"} for _, masks in pairings)
