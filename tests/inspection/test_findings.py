import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, make_config, write_pairs
from PIL import Image

from unet.inspection.check import check_data

pytestmark = pytest.mark.usefixtures("workdir")


def test_an_image_in_both_training_and_validation_is_an_error(data_root: Path) -> None:
    write_pairs(data_root / "held_out", 2, seed=9)
    for folder in ("images", "masks"):
        shutil.copy(data_root / folder / "3.png", data_root / "held_out" / folder / "1.png")
    config = make_config(
        data_root, "data.validation={images: held_out/images, masks: held_out/masks}"
    )
    errors = check_data(config).errors
    assert len(errors) == 1
    assert "images/3.png: got the same pixels in the validation image" in errors[0]
    assert "held_out/images/1.png, expected no image in both" in errors[0]


def test_constant_images_may_be_in_both_training_and_validation(data_root: Path) -> None:
    for i in (0, 1, 2, 3, 4):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(data_root / "images" / f"{i}.png")
    assert not check_data(make_config(data_root)).errors


def test_likely_mistakes_are_warnings(data_root: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(data_root / "masks" / "2.png")
    data = check_data(make_config(data_root, "data.classes={ground: 0, box: 200, ring: 7}"))
    assert not data.errors
    assert any("1 of 6 masks contain only one class, such as" in one for one in data.warnings)
    assert "data.classes.ring: no training mask contains it" in data.warnings
    assert (
        "data.classes.ring: no validation mask contains it, so that it has no score"
        in data.warnings
    )


def test_masks_with_only_ignored_pixels_are_an_error(data_root: Path) -> None:
    data = check_data(make_config(data_root, "data.classes={a: 1, b: 2}", "data.ignore=[0, 200]"))
    assert "every pixel of the training masks is ignored" in data.errors[0]


def test_an_empty_validation_set_is_an_error(data_root: Path) -> None:
    (data_root / "images" / "4.png").write_text("no image")
    config = make_config(data_root, "data.skip_unreadable=true", "data.validation={stems: ['4']}")
    errors = check_data(config).errors
    assert errors == ["data.validation: leaves no validation image; correct it, or add images"]


def test_a_stack_in_both_training_and_validation_is_a_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pages = [
                Image.fromarray(rng.choice([0, 200], (9, 9)).astype(np.uint8)) for _ in range(4)
            ]
            path = tmp_path / name / f"{i}.tif"
            pages[0].save(path, save_all=True, append_images=pages[1:])
    data = check_data(make_config(tmp_path, "data.stacks=true"))
    assert not data.errors
    assert any(
        "one stack has pages in both training and validation" in one for one in data.warnings
    )
    group = "data.validation={fraction: 0.34, group: '^[^#]+'}"
    data = check_data(make_config(tmp_path, "data.stacks=true", group))
    assert not any("pages in both" in one for one in data.warnings)
    assert len(data.val_pairs) == 4
    (tmp_path / "images" / "1.tif").write_text("no image")
    skip = "data.skip_unreadable=true"
    assert check_data(make_config(tmp_path, "data.stacks=true", skip)).skipped == 1


def test_border_weights_need_an_image_with_two_cells(data_root: Path) -> None:
    errors = check_data(make_config(data_root, "loss.border={classes: [box]}")).errors
    assert len(errors) == 1
    assert errors[0].startswith("loss.border: the weights lie between two cells, and no training")
    assert errors[0].endswith("correct loss.border.classes")


def test_nearly_constant_images_are_named(data_root: Path) -> None:
    for i in (1, 4):
        pixels = np.full((HEIGHT, WIDTH), 40 + i, np.uint8)
        pixels[0, 0] = 50
        Image.fromarray(pixels).save(data_root / "images" / f"{i}.png")
    data = check_data(make_config(data_root))
    assert not data.errors
    (warning,) = [one for one in data.warnings if "constant" in one]
    assert warning.startswith("2 images, such as ")
    assert "is nearly constant, unlike the other images" in warning
