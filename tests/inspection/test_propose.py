from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from unet.cli.main import main
from unet.config.loader import config_from_dict, load_config
from unet.config.schema import Config
from unet.data.pairing import find_pairs
from unet.inspection.check import check_data
from unet.inspection.propose import propose
from unet.runtime import optional

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _run_in_workdir(workdir: Path) -> None:
    """The cache of the check is in runs/, relative to the current folder."""


def draw(values: list[int], size: tuple[int, int] = (70, 90)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image, and a mask with a rectangle of each value but the first."""
    mask = np.full(size, values[0], np.uint16 if max(values) > 255 else np.uint8)
    for i, value in enumerate(values[1:]):
        mask[5:60, 4 + 20 * i : 18 + 20 * i] = value
    image = (mask > values[0]) * 90.0 + RNG.normal(60, 9, size)
    return image.clip(0, 255).astype(np.uint8), mask


def write(root: Path, image: str, mask: str, values: list[int]) -> None:
    """Write an image and its mask."""
    for name, pixels in zip((image, mask), draw(values), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def proposed(root: Path) -> Config:
    """The config for a folder; the check finds no errors."""
    config = load_config(write_config(root))
    assert check_data(config).errors == []
    return config


def write_config(root: Path) -> Path:
    Path("mine.yaml").write_text(propose(root, "mine"), encoding="utf-8")
    return Path("mine.yaml")


@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        ("images/{}.png", "masks/{}.png", "images", "masks"),
        ("all/{}.png", "all/{}_mask.png", "all", "all/{stem}_mask"),
        ("day{}/raw/a{}.png", "gt/day{}/a{}.png", "day*/raw", "gt/day*"),
    ],
)
def test_the_places_of_the_files_are_found(
    tmp_path: Path, image: str, mask: str, images: str, masks: str
) -> None:
    root = tmp_path / "data"
    for i in range(8):
        write(root, image.format(i, i), mask.format(i, i), [0, 255])
    data = proposed(root).data
    assert (data.images, data.masks) == (images, masks)
    assert data.classes == {"background": 0, "foreground": 255}


@pytest.mark.parametrize("step", [1, 2])
def test_masks_of_half_the_size_are_resized_and_counted(tmp_path: Path, step: int) -> None:
    for i in range(6):
        write(tmp_path / "data", f"images/{i}.png", f"masks/{i}.png", [0, 255])
        with Image.open(path := tmp_path / "data" / f"masks/{i}.png") as file:
            smaller = file.reduce(2) if i % step == 0 else file.copy()
        smaller.point(lambda value: 255 * (value > 127)).save(path)
    text = propose(tmp_path / "data", "mine")
    assert f"# {6 // step} of 6 masks have another size than their image." in text
    assert "\n  resize_masks: true\n" in text
    assert check_data(proposed(tmp_path / "data")).errors == []


def test_a_single_image_is_trained_on_without_validation(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", [0, 255])
    config = proposed(tmp_path)
    assert config.data.validation.none


def test_images_that_cannot_be_read_are_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write(tmp_path, f"images/{i}.tif", f"masks/{i}.png", [0, 255])
        tifffile.imwrite(tmp_path / f"images/{i}.tif", draw([0, 255])[0], tile=(16, 16), bigtiff=1)
    monkeypatch.setattr(optional, "is_installed", lambda *_: False)
    with pytest.raises(ValueError, match=r"that can be read; .*tif.*: needs imagecodecs; install"):
        propose(tmp_path, "mine")


def test_images_of_another_format_are_named_with_a_converter(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
        (tmp_path / f"images/{i}.png").unlink()
        (tmp_path / f"images/{i}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    with pytest.raises(ValueError, match=r"not read: a HEIC file; save it as a PNG"):
        propose(tmp_path, "mine")
    with pytest.raises(ValueError, match=r"expected names .*0\.heic is a HEIC file; save it as a"):
        find_pairs(tmp_path, ["images"], "masks")


def test_palettes_in_another_order_get_classes_by_colour(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 1])
        with Image.open(tmp_path / f"masks/{i}.png") as mask:
            indices = np.asarray(mask) ^ (i % 2)
        colours = [0, 0, 0, 200, 0, 0]
        mask = Image.fromarray(indices.astype(np.uint8))
        mask.putpalette(colours[3:] + colours[:3] if i % 2 else colours)
        mask.save(tmp_path / f"masks/{i}.png")
    values = proposed(tmp_path).data.classes.values()
    assert sorted(map(tuple, values)) == [(0, 0, 0), (200, 0, 0)]


def test_masks_that_exif_does_not_turn_with_their_images_have_a_setting(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(4):
        write(tmp_path, f"images/{i}.jpg", f"masks/{i}.png", [0, 255])
        with Image.open(tmp_path / f"images/{i}.jpg") as image:
            image.save(tmp_path / f"images/{i}.jpg", exif=exif)
    assert proposed(tmp_path).data.exif == "ignore"


def test_stacks_are_recognised(tmp_path: Path) -> None:
    pages = [draw([0, 255]) for _ in range(5)]
    for i, name in enumerate(("volume", "labels")):
        first, *rest = (Image.fromarray(page[i]) for page in pages)
        first.save(tmp_path / f"train-{name}.tif", save_all=True, append_images=rest)
    config = proposed(tmp_path)
    assert config.data.stacks
    assert len(check_data(config).train_pairs) == 4


def test_validation_folders_and_tables_are_recognised(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "a", f"train/{i}.png", f"trainannot/{i}.png", [0, 1, 2])
    for i in range(6, 9):
        write(tmp_path / "a", f"val/{i}.png", f"valannot/{i}.png", [0, 1, 2])
    data = proposed(tmp_path / "a").data
    assert (data.images, data.masks) == ("train", "trainannot")
    assert (data.validation.images, data.validation.masks) == ("val", "valannot")
    rows = ["image,mask,split"]
    for i in range(6):
        write(tmp_path / "b", f"{i}.png", f"x{i}.png", [0, 1, 2])
        rows.append(f"{i}.png,x{i}.png,{'val' if i > 3 else 'train'}")
    (tmp_path / "b" / "pairs.csv").write_text("\n".join(rows))
    data = proposed(tmp_path / "b").data
    assert (data.csv, data.validation.split) == ("pairs.csv", "val")


def test_the_test_split_is_not_used(tmp_path: Path) -> None:
    number = 0
    for split, count in (("train", 5), ("val", 2), ("test", 6)):
        for _ in range(count):
            number += 1
            write(tmp_path / "a", f"{split}/{number}.png", f"{split}_labels/{number}.png", [0, 1])
    data = proposed(tmp_path / "a").data
    assert (data.images, data.validation.images) == ("train", "val")
    rows = [",".join(('"image"', '"mask"', '"split"'))]
    for i, split in enumerate(["train", "train", "train", "test", "dev", "train"]):
        write(tmp_path / "b", f"{i}.png", f"x{i}.png", [0, 1, 2])
        rows.append(f"{i}.png,x{i}.png,{split}")
    (tmp_path / "b" / "pairs.csv").write_text("\n".join(rows))
    assert proposed(tmp_path / "b").data.validation.split == "dev"


@pytest.mark.parametrize("name", ["2024-01-05", "on", "1e5", "it's", 'a "b" c', "x: y", "ä b"])
def test_names_with_another_meaning_in_yaml_are_quoted(tmp_path: Path, name: str) -> None:
    for i in range(4):
        write(tmp_path / name, f"{name}/{i}.png", f"{name} mask/{i}.png", [0, 255])
    data = proposed(tmp_path / name).data
    assert data.root == str(tmp_path / name)
    assert (data.images, data.masks) == (name, f"{name} mask")


@pytest.mark.parametrize(
    ("name", "group", "count"),
    [
        ("rat{}_slice{}", "the start of the name, such as rat0", 4),
        ("{}_side{}", "the start of the name, such as 0", 4),
        ("img_{}{}", "", 0),
        ("eye_{}_{}", "the first number in the name, such as 0", 4),
    ],
)
def test_groups_by_name_are_a_comment(tmp_path: Path, name: str, group: str, count: int) -> None:
    for i in range(12):
        file = f"{name.format(i % 4, i // 4)}.png"
        write(tmp_path, f"images/{file}", f"masks/{file}", [0, 255])
    text = propose(tmp_path, "mine")
    assert proposed(tmp_path).data.validation.group is None
    assert (f"# {count} groups by {group}" in text) == bool(group)
    if group:
        line = next(one for one in text.splitlines() if "# validation:" in one)
        used = text.replace("\n  validation: {fraction: 0.2}", "\n" + line.replace("# ", ""))
        data = check_data(config_from_dict({"name": "mine", **yaml.safe_load(used)}))
        parts = [{pair.stem[:-1] for pair in part} for part in (data.train_pairs, data.val_pairs)]
        assert not parts[0] & parts[1]


def test_the_images_of_one_folder_stay_together(tmp_path: Path) -> None:
    for patient in ("ann", "ben", "cid", "dan"):
        for i, side in enumerate(("left", "right", "top")):
            name = f"{patient}/{side}/{chr(ord('a') + i)}{patient}"
            write(tmp_path, f"images/{name}.png", f"masks/{name}.png", [0, 255])
    data = check_data(proposed(tmp_path))
    patients = [{pair.stem[:3] for pair in part} for part in (data.train_pairs, data.val_pairs)]
    assert all(patients)
    assert not patients[0] & patients[1]


def test_training_images_never_get_masks_of_other_splits(tmp_path: Path) -> None:
    """Even if these have the same names and more classes."""
    number = 0
    for split, values in (("train", [0, 1]), ("val", [0, 1, 2]), ("test", [0, 1, 2])):
        for _ in range(10):
            write(tmp_path, f"{split}/images/{number}.png", f"{split}/masks/{number}.png", values)
            number += 1
    data = proposed(tmp_path).data
    assert (data.images, data.masks) == ("train/images", "train/masks")
    assert (data.validation.images, data.validation.masks) == ("val/images", "val/masks")


def test_a_field_of_view_is_not_taken_for_a_mask_of_classes(tmp_path: Path) -> None:
    """In DRIVE, for example, it is the same in all images."""
    for i in range(21, 29):
        write(tmp_path, f"images/{i}_training.png", f"1st_manual/{i}_manual1.png", [0, 255])
        with Image.open(tmp_path / f"1st_manual/{i}_manual1.png") as mask:
            vessels = np.roll(np.array(mask), 9 * i, axis=1)
        Image.fromarray(vessels).save(tmp_path / f"1st_manual/{i}_manual1.png")
        view = np.zeros((70, 90), np.uint8)
        view[5 : 64 + i % 2, 5:85] = 255
        (tmp_path / "mask").mkdir(exist_ok=True)
        Image.fromarray(view).save(tmp_path / f"mask/{i}_training_mask.png")
    data = proposed(tmp_path).data
    assert data.masks == "1st_manual/{stem}_manual1"
    assert (
        'Other masks of the same images; to use them: masks: "mask/{stem}_training_mask"\n'
        in Path("mine.yaml").read_text(encoding="utf-8")
    )


def test_other_files_are_a_warning(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"{'abcd'[i]}/image.png", f"{'abcd'[i]}/mask.png", [0, 255])
    Image.new("L", (9, 9)).save(tmp_path / "overview.png")
    data = proposed(tmp_path).data
    assert (data.images, data.masks) == ("{stem}/image", "{stem}/mask")
    said = f"# Warning: 1 other file next to the images and masks, such as {tmp_path}/overview"
    assert said in Path("mine.yaml").read_text(encoding="utf-8")


def test_classes_follow_the_mask_values(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "a", f"images/{i}.png", f"masks/{i}.png", [0, 127 + i % 2, 255])
        write(tmp_path / "b", f"images/{i}.png", f"masks/{i}.png", [0, 1, 2, 255])
        write(tmp_path / "c", f"images/{i}.png", f"masks/{i}.png", [0, 300, 500, 700])
        write(tmp_path / "d", f"images/{i}.png", f"masks/{i}.png", [0, 1, 2, 3])
        with Image.open(tmp_path / f"d/masks/{i}.png") as mask:
            numbers = np.array(mask).astype(np.uint16)
        numbers[numbers > 3 - i % 2] = 0  # not as many objects in each mask
        Image.fromarray(numbers).save(tmp_path / f"d/masks/{i}.png")
    assert proposed(tmp_path / "a").data.classes == {
        "background": 0,
        "class_127": "127, 128",
        "class_255": 255,
    }
    data = proposed(tmp_path / "b").data
    assert data.classes == {"background": 0, "class_1": 1, "class_2": 2}
    assert data.ignore == (255,)
    data = proposed(tmp_path / "c").data
    assert list(data.classes.values()) == [0, 300, 500, 700]
    assert proposed(tmp_path / "d").data.classes == {"background": 0, "object": "1-65535"}


def test_stray_values_near_a_class_get_a_tolerance(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
    with Image.open(tmp_path / "masks/3.png") as mask:
        pixels = np.array(mask)
    pixels[0, 0] = 9
    Image.fromarray(pixels).save(tmp_path / "masks/3.png")
    data = proposed(tmp_path).data
    assert data.classes == {"background": 0, "foreground": 255}
    assert data.tolerance == 9


def test_smoothed_masks_and_jpeg_masks_have_their_original_classes(tmp_path: Path) -> None:
    for i in range(6):
        for root, values in (("grey", [0, 128, 255]), ("colour", [0, 255])):
            image, mask = draw(values, (140, 180))
            pixels = mask if root == "grey" else mask[..., None] * np.array([1, 0, 0], np.uint8)
            for folder, array in (("images", image), ("masks", pixels)):
                (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(array.astype(np.uint8))
                picture.save(tmp_path / root / folder / f"{i}.jpg", quality=70)
    data = proposed(tmp_path / "grey").data
    assert len(data.classes) == 3
    assert all(
        isinstance(value, int) and abs(value - meant) <= 4
        for value, meant in zip(data.classes.values(), (0, 128, 255), strict=True)
    )
    assert 10 < data.tolerance < 128
    data = proposed(tmp_path / "colour").data
    assert len(data.classes) == 2
    assert 10 < data.tolerance < 255


def test_a_black_mask_among_coloured_masks_counts_as_coloured(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255] if i else [0, 0])
        with Image.open(tmp_path / f"masks/{i}.png") as mask:
            grey = np.array(mask)
        red = np.stack([grey, grey * 0, grey * 0], axis=2)
        Image.fromarray(red).save(tmp_path / f"masks/{i}.png")
    assert proposed(tmp_path).data.classes == {"class_0": (0, 0, 0), "class_1": (255, 0, 0)}


def test_masks_with_one_value_are_an_error(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0])
    with pytest.raises(ValueError, match="masks: got the value 0 nearly everywhere"):
        propose(tmp_path, "mine")


def test_stray_values_among_consecutive_classes_are_ignored(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 1, 2, 3])
    with Image.open(tmp_path / "masks/3.png") as mask:
        pixels = np.array(mask)
    pixels[0, :2] = 77, 255
    Image.fromarray(pixels).save(tmp_path / "masks/3.png")
    data = proposed(tmp_path).data
    assert data.tolerance == 0
    assert data.ignore == (77, 255)
    assert list(data.classes.values()) == [0, 1, 2, 3]


def test_a_class_in_few_masks_is_found(tmp_path: Path) -> None:
    for i in range(400):
        values = [0, 1, 2] if i % 40 == 7 else [0, 1]
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", values)
    assert list(proposed(tmp_path).data.classes.values()) == [0, 1, 2]


def test_masks_without_classes_and_unreadable_masks_are_errors(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
        blurred = np.kron(RNG.integers(0, 256, (7, 9, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        Image.fromarray(blurred).save(tmp_path / f"masks/{i}.png")
    with pytest.raises(ValueError, match=r"none that stands out, .*; are these masks"):
        propose(tmp_path, "mine")
    rows = [f"images/{i}.png,masks/{i}.png" for i in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *rows]))
    for path in (tmp_path / "masks").iterdir():
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"masks/0\.png: cannot be read as an image"):
        propose(tmp_path, "mine")


def test_a_damaged_file_is_an_error_of_the_check_only(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
    (tmp_path / "images/0.png").write_text("no image")
    (tmp_path / "masks/3.png").write_bytes(b"")
    Path("mine.yaml").write_text(propose(tmp_path, "mine"), encoding="utf-8")
    errors = check_data(load_config(Path("mine.yaml"))).errors
    assert len(errors) == 2
    assert all("cannot be read as an image" in error for error in errors)


def test_rare_classes_get_half_of_the_crops(tmp_path: Path) -> None:
    for i in range(4):
        rgb = RNG.integers(0, 256, (900, 700, 3), dtype=np.uint8)
        mask = np.zeros((900, 700), np.uint8)
        mask[100:120, 50:60] = 1
        mask[300:700, 300:600] = 2
        for folder, pixels in (("images", rgb), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    config = proposed(tmp_path)
    assert config.sampling.rare_classes == ("class_1",)
    assert config.sampling.rare_fraction == 0.5
    assert config.model.in_channels == 3
    assert config.augment.crop == (256, 256)


def test_16_bit_images_are_normalised_by_percentiles(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.tif", f"masks/{i}.png", [0, 255])
        pixels = RNG.integers(0, 60000, (70, 90), dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.tif")
    config = proposed(tmp_path)
    assert config.data.normalization == "percentiles"
    assert config.model.in_channels == 1


def test_masks_of_classes_are_preferred_to_instances(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
        numbers = np.kron(np.arange(63, dtype=np.uint16).reshape(7, 9), np.ones((10, 10), int))
        (tmp_path / "instances").mkdir(exist_ok=True)
        Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / f"instances/{i}.png")
    data = proposed(tmp_path).data
    assert data.masks == "masks"
    assert data.instances is None  # they number other objects


@pytest.mark.parametrize("masks", ["masks", "instances"])
def test_label_images_of_the_same_objects_are_recognised(tmp_path: Path, masks: str) -> None:
    for folder in ("train", "val"):
        for i in range(4):
            objects = np.zeros((70, 90), np.uint16)
            for place in range(12 + i):
                top, left = divmod(place, 8)
                objects[20 * top :, 10 * left :][:18, :10] = place + 1  # touching
            image = (objects > 0) * 90.0 + RNG.normal(60, 9, objects.shape)
            files = {
                "images": image.clip(0, 255).astype(np.uint8),
                "masks": np.uint8(255) * (objects > 0),
                "instances": objects,
            }
            for name in {"images", masks, "instances"}:
                (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(files[name]).save(tmp_path / folder / f"{name}/{i}.png")
    data = proposed(tmp_path).data
    assert (data.masks, data.instances) == (f"train/{masks}", "train/instances")
    validation = data.validation
    assert (validation.masks, validation.instances) == (f"val/{masks}", "val/instances")


def test_numbers_of_large_objects_are_not_taken_for_classes(tmp_path: Path) -> None:
    for i in range(8):
        objects = np.zeros((90, 90), np.uint16)
        for place in range(64):
            top, left = divmod(place, 8)
            objects[11 * top :, 11 * left :][:4, :4] = place + 1
        objects[3:33, 3:33] = 44  # over 10 % of the pixels
        image = (objects > 0) * 90.0 + RNG.normal(60, 9, objects.shape)
        for name, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", objects)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{name}/{i}.png")
    data = proposed(tmp_path).data
    assert data.classes == {"background": 0, "object": "1-65535"}
    assert data.instances == "masks"


@pytest.mark.parametrize("names", [("images/{}", "masks/{}"), ("{}/images", "{}/masks")])
def test_split_folders_are_recognised_above_and_below_image_folders(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for split in ("train", "val", "test"):
        for i in range(6):
            write(tmp_path, *(f"{name.format(split)}/{i}.png" for name in names), [0, 255])
    data = proposed(tmp_path).data
    assert "Other masks" not in Path("mine.yaml").read_text(encoding="utf-8")
    assert (data.images, data.masks) == tuple(name.format("train") for name in names)
    held_out = data.validation.images, data.validation.masks
    assert held_out == tuple(name.format("val") for name in names)


@pytest.mark.parametrize("both", [False, True])
def test_masks_of_other_classes_are_not_taken_for_label_images(tmp_path: Path, both: bool) -> None:
    for i in range(4):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255, 255 * both])
        write(tmp_path, f"images/{i}.png", f"types/{i}.png", [0, 1, 2])
    assert proposed(tmp_path).data.instances is None


def test_label_images_must_exist_for_all_images(tmp_path: Path) -> None:
    for i in range(20):
        numbers = np.kron(np.arange(63).reshape(7, 9), np.ones((10, 10), int))
        image = RNG.normal(60, 9, numbers.shape) + 90 * (numbers > 0)
        for name, pixels in (
            ("images", image.clip(0, 255).astype(np.uint8)),
            ("masks", np.uint8(255) * (numbers > 0)),
            ("instances", numbers.astype(np.uint16)),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{name}/{i}.png")
    assert proposed(tmp_path).data.instances == "instances"
    (tmp_path / "instances/7.png").unlink()
    assert proposed(tmp_path).data.instances is None


def test_a_folder_without_masks_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "other/2.png", [0, 255])
    with pytest.raises(ValueError, match=r"found only 2 \.png and no images and masks with corr"):
        propose(tmp_path, "mine")
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        propose(tmp_path / "nowhere", "mine")


def test_the_command_writes_a_config_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        write(tmp_path, f"images/{i}.png", f"masks/{i}.png", [0, 255])
    assert main(["init", str(tmp_path), "-o", "configs/mine.yaml"]) == 0
    assert "unet train configs/mine.yaml" in capsys.readouterr().out
    assert main(["check", "configs/mine.yaml", "--pictures", "samples.txt"]) == 2
    assert "samples.txt: expected a name that ends in .png" in capsys.readouterr().err
    assert main(["check", "configs/mine.yaml", "--pictures", "samples.png"]) == 0
    assert Path("samples.png").exists()
    small = ["model.widths=[4,8]", "train.epochs=2", "train.num_workers=0"]
    assert main(["train", "configs/mine.yaml", *small]) == 0
    assert main(["init", str(tmp_path), "-o", "configs/mine.yaml"]) == 2
    assert "configs/mine.yaml: exists; pass --overwrite" in capsys.readouterr().err
    (tmp_path / "masks/0.png").unlink()
    assert main(["check", "configs/mine.yaml"]) == 1
    assert "no file of the same stem for" in capsys.readouterr().err


@pytest.mark.parametrize("number", [1, 2, 5])
def test_pages_of_a_stack_stay_on_one_side_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(number):
        for folder in ("images", "masks"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        masks = np.zeros((6, 40, 50), np.uint8)
        masks[:, 5 + i : 20, 8:30] = 1
        images = (90 * masks + rng.integers(0, 60, masks.shape)).astype(np.uint8)
        for folder, stack in (("images", images), ("masks", masks)):
            pages = [Image.fromarray(page) for page in stack]
            path = tmp_path / "data" / folder / f"{i}.tif"
            pages[0].save(path, save_all=True, append_images=pages[1:])
    text = propose(Path("data"), "mine")
    config = config_from_dict({"name": "mine", **yaml.safe_load(text)})
    data = check_data(config)
    assert not data.errors
    assert not any("one stack has pages" in warning for warning in data.warnings) or number == 1
    train, val = ({pair.stem for pair in pairs} for pairs in (data.train_pairs, data.val_pairs))
    if number == 1:
        assert val == {"0#5"}
    else:
        assert not {stem[0] for stem in train} & {stem[0] for stem in val}


def test_minus_one_is_ignored_and_large_labels_are_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, expected in (
        ("unlabelled", ["  classes: {background: 0, foreground: 1}", "  ignore: [-1]"]),
        ("labels", ['  classes: {background: 0, object: "1-2147483647"}']),
    ):
        for i in range(6):
            image, mask = draw([0, 1, 2, 3])
            if kind == "labels":
                large = mask.astype(np.int32) + 70_000 + 9 * i
                mask = np.where(mask > 0, large, 0).astype(np.int32)
            else:
                mask = (mask > 0).astype(np.int32)
                mask[:4] = -1
            for folder, pixels in (("images", image), ("masks", mask)):
                (tmp_path / kind / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / kind / folder / f"{i}.tif")
        text = propose(Path(kind), kind)
        assert set(expected) <= set(text.splitlines())
        assert not check_data(config_from_dict({"name": kind, **yaml.safe_load(text)})).errors
