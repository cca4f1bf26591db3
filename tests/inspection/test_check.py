import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, make_config, write_instances, write_pairs
from PIL import Image

from unet.build import build_reader
from unet.inspection.check import check_data, describe
from unet.inspection.statistics import collect_statistics
from unet.runtime.text import format_list


@pytest.fixture(autouse=True)
def _run_in_workdir(workdir: Path) -> None:
    """The cache is in runs/, relative to the current folder."""


def test_statistics_and_normalization_match_the_files(data_root: Path) -> None:
    config = make_config(data_root)
    data = check_data(config)
    assert not data.errors
    assert len(data.train_pairs) == 4
    assert len(data.val_pairs) == 2
    images = np.stack([np.asarray(Image.open(pair.images[0])) for pair in data.train_pairs]) / 255
    masks = np.stack([np.asarray(Image.open(pair.masks[0])) for pair in data.train_pairs])
    assert data.train.class_pixels.sum(0).tolist() == [(masks == 0).sum(), (masks == 200).sum()]
    assert (data.train.sizes == (HEIGHT, WIDTH)).all()
    normalization = data.normalization(config)
    assert normalization.mean.tolist() == pytest.approx([images.mean()])
    assert normalization.std.tolist() == pytest.approx([images.std()])
    assert data.normalization(make_config(data_root, "data.normalization=image")).method == "image"
    given = make_config(data_root, "data.normalization={mean: [0.5], std: [0.25]}")
    assert data.normalization(given).mean.tolist() == [0.5]


def test_every_error_is_reported_at_once(data_root: Path) -> None:
    images, masks = data_root / "images", data_root / "masks"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(masks / "1.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 5, np.uint8)).save(masks / "2.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 6, np.uint8)).save(masks / "3.png")
    (images / "4.png").write_bytes(b"")
    shutil.copy(images / "0.png", images / "lonely.png")
    errors = check_data(make_config(data_root)).errors
    expected = [
        "no file of the same stem for",
        "4.png: cannot be read as an image (0 bytes); replace or remove the file",
        "2 masks hold 5, 6, which are no classes; data.classes that would fit: {ground: 0, box: "
        "200, new_1: 5, new_2: 6}",
        f"1.png: got a mask of 8 x 9 pixels (height x width), expected {HEIGHT} x {WIDTH} as its",
    ]
    assert len(errors) == len(expected)
    for error, text in zip(errors, expected, strict=True):
        assert text in error


def test_equal_errors_are_one_line_with_a_count_and_three_files(data_root: Path) -> None:
    """All masks hold 255 instead of 200, or are too small, or cannot be read."""
    folder = data_root / "masks"
    pixels = {path: np.array(Image.open(path)) for path in sorted(folder.iterdir())}
    for path, mask in pixels.items():
        Image.fromarray(np.where(mask > 0, np.uint8(255), np.uint8(0))).save(path)
    data = check_data(make_config(data_root))
    assert data.errors == [
        "6 masks hold 255, which is no class; data.classes that would fit: {ground: 0, box: 255} "
        f"({folder}/0.png, {folder}/1.png, {folder}/2.png and 3 more)"
    ]
    assert describe(make_config(data_root), data) == ""
    for i, (path, mask) in enumerate(pixels.items()):
        Image.fromarray(mask[i + 3 :]).save(path)
    (error,) = check_data(make_config(data_root)).errors
    assert error.startswith(f"6 files, such as {folder}/0.png: got a mask of 33 x 52 pixels")
    assert error.endswith(f" (also {folder}/1.png, {folder}/2.png and 3 more)")
    for path in pixels:
        path.write_text("no image")
    (error,) = check_data(make_config(data_root)).errors
    assert error.startswith(f"6 files, such as {folder}/0.png: cannot be read as an image")


def test_unreadable_files_are_left_out_only_with_skip_unreadable(data_root: Path) -> None:
    (data_root / "images" / "4.png").write_text("no image")
    assert len(check_data(make_config(data_root)).errors) == 1
    data = check_data(make_config(data_root, "data.skip_unreadable=true"))
    assert not data.errors
    assert data.skipped == 1
    assert len(data.train_pairs) + len(data.val_pairs) == 5
    assert "4.png: cannot be read as an image" in data.warnings[0]
    assert data.warnings[1] == "left out 1 pair that cannot be read"


def test_validation_folders_that_do_not_pair_are_an_error(data_root: Path) -> None:
    (data_root / "val").mkdir()
    (data_root / "valm").mkdir()
    shutil.copy(data_root / "images" / "1.png", data_root / "val" / "8.png")
    shutil.copy(data_root / "masks" / "1.png", data_root / "valm" / "9.png")
    errors = check_data(make_config(data_root, "data.validation={images: val, masks: valm}")).errors
    assert len(errors) == 2
    assert all("no file of the same stem for" in error for error in errors)


def test_a_broken_link_is_one_error_among_others(data_root: Path) -> None:
    (data_root / "images" / "3.png").unlink()
    (data_root / "images" / "3.png").symlink_to("nowhere.png")
    (data_root / "masks" / "4.png").write_text("no image")
    errors = check_data(make_config(data_root)).errors
    assert len(errors) == 2
    assert "4.png: cannot be read" in errors[0]
    assert "3.png: there is no such file" in errors[1]


def test_errors_are_found_again_by_a_second_check(data_root: Path) -> None:
    (data_root / "images" / "4.png").write_text("no image")
    config = make_config(data_root)
    assert check_data(config).errors == check_data(config).errors != []


def test_describe_lists_sizes_types_and_class_fractions(data_root: Path) -> None:
    config = make_config(data_root)
    text = describe(config, check_data(config))
    assert "4 training and 2 validation images" in text
    assert f"{HEIGHT} x {WIDTH} (6)" in text
    assert "grey, uint8 (6)" in text
    assert "box              17.09%       4             17.09%       2" in text


def test_masks_are_resized_only_with_resize_masks_and_are_counted(data_root: Path) -> None:
    path = data_root / "masks" / "2.png"
    with Image.open(path) as mask:
        mask.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(path)
    (error,) = check_data(make_config(data_root)).errors
    assert "got a mask of 18 x 26 pixels (height x width), expected 36 x 52 as its image" in error
    assert error.endswith("or set data.resize_masks=true, as the aspect ratios agree")
    config = make_config(data_root, "data.resize_masks=true")
    data = check_data(config)
    assert not data.errors
    assert "resized          1 mask by data.resize_masks" in describe(config, data)
    assert build_reader(config).read(data.train_pairs[0])[1].shape == (HEIGHT, WIDTH)
    with Image.open(path) as mask:
        mask.resize((WIDTH, HEIGHT // 2), Image.Resampling.NEAREST).save(path)
    (error,) = check_data(config).errors
    assert error.endswith("expected 36 x 52 as its image; correct the one that is wrong")


def test_what_settings_leave_out_or_absorb_is_counted(data_root: Path) -> None:
    path = data_root / "masks" / "2.png"
    with Image.open(path) as mask:
        pixels = np.array(mask)
    pixels[0, :3] = 9
    Image.fromarray(pixels).save(path)
    config = make_config(data_root, "data.tolerance=10", "data.exclude=['4.png']")
    data = check_data(config)
    assert not data.errors
    text = describe(config, data)
    assert "left out         2 files by data.exclude" in text
    assert "nearest class    3 pixels (0.03%) by data.tolerance" in text


def test_folds_and_tables_split(data_root: Path) -> None:
    folds = [
        check_data(make_config(data_root, f"data.validation={{folds: 3, fold: {fold}}}")).val_pairs
        for fold in range(3)
    ]
    assert sorted(pair.stem for fold in folds for pair in fold) == list("012345")
    rows = [
        f"images/{i}.png,masks/{i}.png,{split}"
        for i, split in enumerate(["train", "val", "test", "train", "val", "train"])
    ]
    (data_root / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]))
    data = check_data(make_config(data_root, "data.csv=pairs.csv", "data.validation={split: val}"))
    assert [pair.stem for pair in data.val_pairs] == ["images/1", "images/4"]
    assert [pair.stem for pair in data.train_pairs] == ["images/0", "images/3", "images/5"]
    assert data.warnings == [
        "pairs.csv: 1 row with a split that is neither train nor val: not used"
    ]
    (data_root / "val.txt").write_text("2\n3\n")
    data = check_data(make_config(data_root, "data.validation={stems: val.txt}"))
    assert [pair.stem for pair in data.val_pairs] == ["2", "3"]
    data = check_data(make_config(data_root, "data.csv=pairs.csv", "data.validation={split: dev}"))
    assert "no row has 'dev' in the column split (test, train, val)" in data.errors[0]


def test_one_mask_file_per_class_is_read(data_root: Path) -> None:
    (data_root / "masks").rename(data_root / "box")
    for path in (data_root / "box").iterdir():
        with Image.open(path) as mask:
            pixels = np.array(mask)
        Image.fromarray(np.where(pixels > 0, 255, 0).astype(np.uint8)).save(path)
    config = make_config(data_root, "data.masks={box: box}")
    data = check_data(config)
    assert not data.errors
    assert (data.train.class_pixels[:, 1] == 320).all()
    found = collect_statistics(data.val_pairs, build_reader(config)).statistics
    assert (found.class_pixels[:, 1] == 320).all()


def test_long_lists_of_errors_are_cut() -> None:
    assert format_list([str(i) for i in range(12)]).splitlines()[-2:] == ["9", "... and 2 more"]
    assert format_list(["a", "b"]) == "a\nb"


BORDER = ("data.instances=instances", "loss.border={sigma: 3}")


def test_label_images_may_lie_in_the_folder_of_the_images(data_root: Path) -> None:
    write_instances(data_root)
    for folder, suffix in (("images", ""), ("masks", "_mask"), ("instances", "_cells")):
        for path in (data_root / folder).iterdir():
            place = data_root / ("val" if path.stem == "5" else "all")
            place.mkdir(exist_ok=True)
            path.rename(place / f"{path.stem}{suffix}.png")
    patterns = "images: all, masks: 'all/{stem}_mask', instances: 'all/{stem}_cells'"
    val = patterns.replace("all", "val")
    config = make_config(data_root, f"data={{root: {data_root}, {patterns}, classes: "
                         f"{{ground: 0, box: 200}}, validation: {{{val}}}}}")  # fmt: skip
    data = check_data(config)
    assert not data.errors
    assert (len(data.train_pairs), len(data.val_pairs)) == (5, 1)
    assert data.train_pairs[0].instances == f"{data_root}/all/0_cells.png"
    assert data.val_pairs[0].instances == f"{data_root}/val/5_cells.png"


def test_cells_are_counted_and_invalid_label_images_are_errors(data_root: Path) -> None:
    write_instances(data_root)
    data = check_data(make_config(data_root, *BORDER))
    assert not data.errors
    assert data.train.num_cells.tolist() == [2] * 4
    assert check_data(make_config(data_root)).train.num_cells.tolist() == [0] * 4
    assert all(pair.instances is None for pair in check_data(make_config(data_root)).train_pairs)
    assert check_data(make_config(data_root, BORDER[0])).train.num_cells.tolist() == [0] * 4
    classes = make_config(data_root, BORDER[0], "loss.border={classes: [box], sigma: 3}")
    assert (
        check_data(classes).errors[0].startswith("loss.border: the weights lie between two cells")
    )
    cells = data_root / "instances"
    (cells / "1.png").unlink()
    (cells / "2.png").write_text("no image")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(cells / "3.png")
    errors = check_data(make_config(data_root, *BORDER)).errors
    assert errors == check_data(make_config(data_root, BORDER[0])).errors  # needed by unet evaluate
    assert errors == check_data(classes).errors
    assert len(errors) == 3
    assert f"{cells}: there is no file of the same stem for {data_root}/masks/1.png" in errors[0]
    assert f"{cells}/2.png: cannot be read as an image" in errors[1]
    assert f"{cells}/3.png: got a label image of 8 x 9 pixels (height x width)" in errors[2]


def test_an_unreadable_label_image_is_left_out_only_with_skip_unreadable(data_root: Path) -> None:
    write_instances(data_root)
    (data_root / "instances" / "2.png").write_text("no image")
    data = check_data(make_config(data_root, *BORDER, "data.skip_unreadable=true"))
    assert not data.errors
    assert data.skipped == 1


def test_validation_folders_need_no_label_images(data_root: Path) -> None:
    write_pairs(data_root / "held_out", 2, seed=9)
    write_instances(data_root)
    held_out = "data.validation={images: held_out/images, masks: held_out/masks}"
    data = check_data(make_config(data_root, *BORDER, held_out))
    assert not data.errors
    assert len(data.val_pairs) == 2


def test_components_of_classes_are_counted_as_cells(data_root: Path) -> None:
    for path in (data_root / "masks").iterdir():
        with Image.open(path) as file:
            mask = np.array(file)
        mask[:, round(np.flatnonzero(mask.any(0)).mean())] = 0
        Image.fromarray(mask).save(path)
    assert check_data(make_config(data_root)).train.num_cells.max() == 0
    data = check_data(make_config(data_root, "loss.border={classes: [box]}"))
    assert not data.errors
    assert data.train.num_cells.min() == 2


def test_changed_cells_change_the_fingerprint_only_with_border_weights(data_root: Path) -> None:
    write_instances(data_root)
    configs = make_config(data_root), make_config(data_root, *BORDER)
    without, before = [check_data(config).fingerprint for config in configs]
    shift(data_root / "instances" / "2.png")
    assert check_data(configs[0]).fingerprint == without
    assert check_data(configs[1]).fingerprint != before


def test_neither_the_dtype_of_cells_nor_validation_cells_change_the_fingerprint(
    data_root: Path,
) -> None:
    write_instances(data_root)
    config = make_config(data_root, *BORDER, "data.validation={stems: ['5']}")
    before = check_data(config).fingerprint
    for path in (data_root / "instances").iterdir():
        with Image.open(path) as file:
            numbers = np.array(file)
        path.unlink()
        Image.fromarray(numbers.astype(np.int32)).save(path.with_suffix(".tif"))
    assert check_data(config).fingerprint == before
    shift(data_root / "instances" / "5.tif")
    assert check_data(config).fingerprint == before
    shift(data_root / "instances" / "2.tif")
    assert check_data(config).fingerprint != before


def test_a_changed_mask_changes_the_fingerprint(data_root: Path) -> None:
    before = check_data(make_config(data_root)).fingerprint
    shift(data_root / "masks" / "2.png")
    assert check_data(make_config(data_root)).fingerprint != before


def shift(path: Path) -> None:
    """Shift an image by one pixel; its values stay the same."""
    with Image.open(path) as file:
        shifted = np.roll(np.asarray(file), 1, axis=1)
    Image.fromarray(shifted).save(path)


def test_border_weights_without_scipy_are_an_error_that_says_how_to_install_it(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instances(data_root)
    monkeypatch.setattr("unet.runtime.optional.find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"loss\.border: needs scikit-image; install it with pip install"
    ):
        check_data(make_config(data_root, *BORDER))


def test_every_damaged_file_of_a_pair_is_named(data_root: Path) -> None:
    write_instances(data_root)
    folders = ("images", "masks", "instances")
    for folder in folders:
        (data_root / folder / "3.png").write_bytes(b"")
    (error,) = check_data(make_config(data_root, *BORDER)).errors
    images, *others = [f"{data_root}/{folder}/3.png" for folder in folders]
    assert error.startswith(f"3 files, such as {images}: cannot be read as an image (0 bytes); ")
    assert error.endswith(f" (also {', '.join(others)})")


def test_a_label_image_without_the_objects_of_the_mask_is_an_error(data_root: Path) -> None:
    write_instances(data_root)
    path = data_root / "instances" / "3.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path)
    (error,) = check_data(make_config(data_root, *BORDER)).errors
    assert f"{path}: numbers 0% of the pixels of box in {data_root}/masks/3.png" in error
