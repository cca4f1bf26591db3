"""Several masks and images of the same scenes, in the layouts of public data sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from unet.config.loader import config_from_dict
from unet.inspection.check import check_data
from unet.inspection.find_files import find_files
from unet.inspection.propose import propose
from unet.inspection.unpaired import describe_unpaired

SIZE = (40, 52)
COLOURS = np.array([(0, 0, 0), (200, 30, 30), (30, 60, 220), (30, 200, 60)], np.uint8)
Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]


def noisy(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    level = 50.0 + 45 * np.stack([ids, ids % 2, 3 - ids], axis=2)
    noise = np.random.default_rng(int(numbers.sum())).normal(0, 9, level.shape)
    return (level + noise).clip(0, 255).astype(np.uint8)


def centres(_: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    points = np.zeros(SIZE, np.uint8)
    for i in range(1, numbers.max() + 1):
        y, x = np.argwhere(numbers == i).mean(0).astype(int)
        points[y, x] = 1
    return points


DRAWINGS: dict[str, Draw] = {
    "photo": noisy,
    "band": lambda ids, numbers: noisy(ids, numbers)[..., 0],
    "ids": lambda ids, _: ids.astype(np.uint8),
    "binary": lambda ids, _: np.where(ids > 0, 255, 0).astype(np.uint8),
    "colours": lambda ids, _: COLOURS[ids],
    "objects": lambda ids, numbers: (1000 * ids + numbers).astype(np.uint16),
    "numbers": lambda _, numbers: numbers.astype(np.uint8),
    "centres": centres,
    "view": lambda *_: np.pad(np.full((30, 40), 255, np.uint8), ((5, 5), (6, 6))),
}


def draw(root: Path, files: dict[str, str], count: int = 8, start: int = 0) -> None:
    """Write for each scene each file, by the pattern of its name."""
    for i in range(start, start + count):
        rng = np.random.default_rng(i)
        ids, numbers = np.zeros((2, *SIZE), int)
        for number in range(1, 6):
            top, left = (number - 1) // 3 * 19 + 2, (number - 1) % 3 * 17 + 2
            box = slice(top, top + rng.integers(8, 15)), slice(left, left + rng.integers(8, 13))
            numbers[box], ids[box] = number, rng.integers(1, 4)
        for pattern, drawing in files.items():
            path = root / pattern.format(f"{i:03d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(DRAWINGS[drawing](ids, numbers)).save(path)


@pytest.mark.parametrize(
    ("files", "images", "masks"),
    [
        (  # objects beside classes, in the same palette
            {
                "JPEGImages/{}.jpg": "photo",
                "ClassMask/{}.png": "ids",
                "ObjectMask/{}.png": "numbers",
            },
            "JPEGImages",
            "ClassMask",
        ),
        (  # four encodings beside each other
            {
                "photos/{}_img.png": "photo",
                "fine/{}_fine_color.png": "colours",
                "fine/{}_fine_instanceIds.png": "objects",
                "fine/{}_fine_labelIds.png": "ids",
            },
            "photos/{stem}_img",
            "fine/{stem}_fine_labelIds",
        ),
        (  # colours beside ids
            {"images/{}.jpg": "photo", "colormaps/{}.png": "colours", "masks/{}.png": "ids"},
            "images",
            "masks",
        ),
        (  # three classes in colours beside a mask of plants and soil
            {
                "i/{}_image.png": "photo",
                "a/{}_annotation.png": "colours",
                "m/{}_mask.png": "binary",
            },
            "i/{stem}_image",
            "a/{stem}_annotation",
        ),
        (  # a field of view, and a drawing by hand that is not named like a mask
            {"images/{}_x.png": "photo", "manual/{}_m.gif": "binary", "mask/{}_x_mask.gif": "view"},
            "images/{stem}_x",
            "manual/{stem}_m",
        ),
        (  # overlays and infrared images beside the photos
            {
                "overlay/{}.png": "photo",
                "nir/{}.png": "band",
                "tissue/{}.png": "photo",
                "binary masks/{}.png": "binary",
            },
            "tissue",
            "binary masks",
        ),
        (  # four files of each image in one folder, so that every fourth is like the first
            {
                "{}_centers.png": "centres",
                "{}_fg.png": "binary",
                "{}_label.png": "numbers",
                "{}_rgb.png": "photo",
            },
            "{stem}_rgb",
            "{stem}_fg",
        ),
    ],
)
def test_the_masks_of_classes_and_the_photos_are_chosen(
    tmp_path: Path, files: dict[str, str], images: str, masks: str
) -> None:
    draw(tmp_path, files)
    found = find_files(tmp_path)
    config = yaml.safe_load("\n".join(found.lines))
    assert (config["images"], config["masks"]) == (images, masks)
    assert len(found.pairs) == 8


def test_bands_in_files_of_their_own_are_channels(tmp_path: Path) -> None:
    bands = {f"train_{name}/{name}_{{}}.tif": "band" for name in ("blue", "green", "nir", "red")}
    draw(tmp_path, {**bands, "train_gt/gt_{}.tif": "binary"})
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    names = "red", "green", "blue", "nir"
    assert config.data.channels == tuple(f"train_{name}/{name}_{{stem}}" for name in names)
    assert config.model.in_channels == 4
    assert not check_data(config).errors


def test_validation_images_are_found_in_all_places(tmp_path: Path) -> None:
    for place in ("Rural", "Urban"):
        for start, (split, count) in enumerate((("Train", 7), ("Val", 4), ("Test", 3))):
            start = 100 * start + 50 * (place == "Urban")
            files = {f"{split}/{place}/images/{{}}.png": "photo"}
            files |= {f"{split}/{place}/masks/{{}}.png": "ids"} if split != "Test" else {}
            draw(tmp_path, files, count, start)
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    checked = check_data(config)
    assert (len(checked.train_pairs), len(checked.val_pairs)) == (14, 8)


def test_images_without_masks_are_left_out_if_there_are_many(tmp_path: Path) -> None:
    draw(tmp_path, {"images/{}.jpg": "photo", "masks/{}.png": "ids"}, 8)
    draw(tmp_path, {"images/{}.jpg": "photo"}, 5, start=50)
    text = propose(tmp_path, "mine")
    assert "# 5 others have none: they are left out." in text
    config = config_from_dict({"name": "mine", **yaml.safe_load(text)})
    assert config.data.skip_unlabelled
    checked = check_data(config)
    assert not checked.errors
    assert len(checked.train_pairs) + len(checked.val_pairs) == 8
    assert any("left out 5 images without a mask" in warning for warning in checked.warnings)


def test_masks_of_the_same_images_in_one_folder_are_excluded(tmp_path: Path) -> None:
    masks = {"masks/{}.png": "ids", "masks/{}_second.png": "ids"}
    draw(tmp_path, {"images/{}.jpg": "photo", **masks})
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    assert config.data.exclude == ("*_second.*",)
    assert not check_data(config).errors


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["data.zip"], r"unpack .*data\.zip"),
        (["a/1.xml", "a/2.xml"], r"such as .*a/1\.xml contain outlines, .* unet import"),
    ],
)
def test_a_folder_without_pairs_is_explained(
    tmp_path: Path, files: list[str], message: str
) -> None:
    draw(tmp_path, {"images/{}.png": "photo"})
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=rf"only 8 \.png, .*{message}"):
        find_files(tmp_path)


def test_numbers_that_differ_in_leading_zeros_are_named() -> None:
    paths = [f"images/{i:03d}.png" for i in range(12)] + [f"masks/{i}_x.png" for i in range(12)]
    _, hint = describe_unpaired(paths)
    assert hint.startswith("numbers in images and masks differ in leading zeros, such as 000 and")


def test_a_mask_file_for_each_object_is_refused_in_words(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path, {f"train/c{i}/images/c{i}_{{}}.png": "photo"}, 1)
        draw(tmp_path, {f"train/c{i}/masks/o{i}_{{}}.png": "binary"}, 3, start=10 * i)
    (tmp_path / "train_labels.csv").write_text("ImageId,EncodedPixels\n")
    message = r"one mask file for each object, such as 3 in .*train_labels\.csv"
    with pytest.raises(ValueError, match=message):
        find_files(tmp_path)


def test_grey_class_masks_with_alpha_are_a_mask_for_each_class(tmp_path: Path) -> None:
    draw(tmp_path, {"images/{}.jpg": "photo", "drawn/{}.png": "ids"})
    for path in sorted((tmp_path / "drawn").iterdir()):
        with Image.open(path) as file:
            ids = np.asarray(file)
        for i, name in ((1, "cell"), (2, "nucleus")):
            (tmp_path / "masks" / name).mkdir(parents=True, exist_ok=True)
            white = np.where(ids == i, 255, 0).astype(np.uint8)
            mask = np.dstack([white, white, white, np.full(SIZE, 255, np.uint8)])
            Image.fromarray(mask).save(tmp_path / "masks" / name / path.name)
        path.unlink()
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    assert config.data.masks == {"cell": "masks/cell", "nucleus": "masks/nucleus"}
    assert not check_data(config).errors


def test_files_that_macos_adds_to_archives_are_left_out(tmp_path: Path) -> None:
    draw(tmp_path, {"{}.png": "photo", "{}_mask.png": "binary"})
    for path in sorted(tmp_path.glob("*.png")):
        (tmp_path / "__MACOSX").mkdir(exist_ok=True)
        (tmp_path / "__MACOSX" / path.name).write_bytes(b"Mac OS X")
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    assert not check_data(config).errors
