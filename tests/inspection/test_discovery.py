from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.inspection.discovery import find_pairings

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
def test_files_with_corresponding_names_are_paired(
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
def test_one_folder_per_image_or_patient_is_recognised(
    tmp_path: Path, image: str, mask: str, images: str, masks: str, count: int
) -> None:
    for i in range(count):
        name = "ab"[i // 26] + chr(ord("a") + i % 26)  # no number
        write(tmp_path, image.format(name, name), mask.format(name, name))
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == (images, masks)
    assert len(pairing.files) == count


@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        (
            "case{:02}/imaging/{}.png",
            "case{:02}/masks/{}.png",
            "case{case}/imaging",
            "case{case}/masks",
        ),
        (
            "case{:02}/scan/{}.png",
            "case{:02}/gt/{}_mask.png",
            "case{case}/scan",
            "case{case}/gt/{stem}_mask",
        ),
        ("p{}/img_{}.png", "p{}/seg_{}.png", "p{case}/img_{stem}", "p{case}/seg_{stem}"),
        ("s{0}/t{0}/img/{1}.png", "s{0}/t{0}/seg/{1}.png", "{case}/img", "{case}/seg"),
        ("images/p{}/s{}.png", "masks/p{}/s{}_seg.png", "images", "masks/{stem}_seg"),
        ("a{}/b{}/image.png", "a{}/b{}/mask.png", "{stem}/image", "{stem}/mask"),
    ],
)
@pytest.mark.parametrize("count", [2, 20])
def test_cases_with_equal_names_are_kept_apart(
    tmp_path: Path, image: str, mask: str, images: str, masks: str, count: int
) -> None:
    for case in range(count):
        for i in range(3):
            write(tmp_path, image.format(case, i), mask.format(case, i))
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == (images, masks)
    assert len(pairing.files) == 3 * count


def test_the_slices_of_several_patients_are_not_mixed(tmp_path: Path) -> None:
    """Folders alone do not tell which of a patient's images and masks belong together."""
    for name in ("ann", "ben", "cid", "dan"):
        for i in range(3):
            write(tmp_path, f"{name}/scans/{i}.png", f"{name}/masks/{i}.png")
    for pairing in find_pairings(tmp_path):
        for image, mask in pairing.files.values():
            assert Path(image).stem == Path(mask).stem


def test_folders_of_cities_and_splits_are_recognised(tmp_path: Path) -> None:
    """Cityscapes, for example."""
    for split, cities in (("train", ("ulm", "jena", "bonn")), ("val", ("koeln", "aalen", "bern"))):
        for city in cities:
            for i in range(2):
                name = f"{split}/{city}/{city}_00{i}_019"
                write(tmp_path, f"left8bit/{name}_left8bit.png", f"fine/{name}_fine_labelIds.png")
    found = {(one.images, one.masks): len(one.files) for one in find_pairings(tmp_path)}
    assert found["left8bit/{stem}_left8bit", "fine/{stem}_fine_labelIds"] == 12
    assert found["left8bit/train/*/{stem}_left8bit", "fine/train/*/{stem}_fine_labelIds"] == 6


def test_other_files_are_ignored(tmp_path: Path) -> None:
    for name in "abcdefgh":
        write(tmp_path, f"{name}/photo.png", f"{name}/label.png")
    Image.new("L", (9, 9)).save(tmp_path / "overview.png")
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == ("{stem}/photo", "{stem}/label")
    assert len(pairing.files) == 8


def test_the_largest_of_very_many_folders_are_compared(tmp_path: Path) -> None:
    for i in range(30):
        folder = tmp_path / f"{chr(ord('a') + i // 26)}{chr(ord('a') + i % 26)}"
        folder.mkdir()
        Image.new("L", (9, 9)).save(folder / f"result{i}.png")
    for i in range(8):
        write(tmp_path, f"scans/{i}.png", f"truth/{i}.png")
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == ("scans", "truth")


def test_images_may_have_longer_names_than_masks(tmp_path: Path) -> None:
    """In nnU-Net, for example, the image has the number of its channel, the mask has none."""
    for name in ("lung", "liver", "heart", "brain"):
        write(tmp_path, f"imagesTr/{name}_0000.png", f"labelsTr/{name}.png")
    pairing = find_pairings(tmp_path)[0]
    assert (pairing.images, pairing.masks) == ("imagesTr/{stem}_0000", "labelsTr")


def test_several_masks_of_an_image_are_all_found(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png")
        write(tmp_path, f"images/{i}.png", f"instances/{i}.png")
    assert {(one.images, one.masks) for one in find_pairings(tmp_path)} == {
        ("images", "masks"),
        ("images", "instances"),
    }


def test_two_images_are_not_a_pair(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"raw/{i}.png", f"x/{i}_mask.png")
        Image.fromarray(RNG.integers(0, 256, (70, 90), np.uint8)).save(tmp_path / f"x/{i}.png")
    pairings = {(one.images, one.masks) for one in find_pairings(tmp_path)}
    assert ("raw", "x/{stem}_mask") in pairings
    assert not any(masks in {"raw", "x"} for _, masks in pairings)


def test_files_of_similar_names_without_a_mask_among_them_are_an_error(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            noise = RNG.integers(0, 256, (70, 90), np.uint8)
            Image.fromarray(noise).save(tmp_path / folder / f"{i}.png")
    with pytest.raises(ValueError, match="have corresponding names, but look alike"):
        find_pairings(tmp_path)
