from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from unet.build import build_training_reader
from unet.config.loader import config_from_dict
from unet.inspection.check import check_data
from unet.inspection.mask_files import are_label_images
from unet.inspection.propose import propose

RNG = np.random.default_rng(0)
SIZE = (48, 56)

pytestmark = pytest.mark.usefixtures("workdir")


def write(root: Path, image: str, masks: dict[str, np.ndarray], number: int) -> None:
    noisy = sum(masks.values()) * 0.3 + RNG.normal(60, 9, SIZE)
    for name, array in ((image, noisy.clip(0, 255).astype(np.uint8)), *masks.items()):
        path = root / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that do not overlap."""
    cell, nucleus = np.zeros((2, *SIZE), np.uint8)
    cell[4 + number : 20 + number, 5:30] = 255
    nucleus[30:44, 30 : 40 + number] = 255
    nucleus[cell > 0] = 0
    return cell, nucleus


@pytest.mark.parametrize(
    ("image", "first", "second", "masks"),
    [
        (
            "images/{}.png",
            "masks/{}_cell.png",
            "masks/{}_nucleus.png",
            {"cell": "masks/{stem}_cell", "nucleus": "masks/{stem}_nucleus"},
        ),
        (
            "images/{}.png",
            "masks/cell/{}.png",
            "masks/nucleus/{}.png",
            {"cell": "masks/cell", "nucleus": "masks/nucleus"},
        ),
        (
            "im{}/image.png",
            "im{}/cell_mask.png",
            "im{}/nucleus_mask.png",
            {"cell": "{stem}/cell_mask", "nucleus": "{stem}/nucleus_mask"},
        ),
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_one_mask_for_each_class_is_proposed(
    tmp_path: Path, image: str, first: str, second: str, masks: dict[str, str], split: str
) -> None:
    for i in range(6):
        cell, nucleus = draw(i)
        write(tmp_path, split + image, {split + first: cell, split + second: nucleus}, i)
        if split:
            write(tmp_path, f"val/{image}", {f"val/{first}": cell, f"val/{second}": nucleus}, 9 - i)
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    assert config.data.masks == {name: split + pattern for name, pattern in masks.items()}
    assert config.data.classes == {"background": 0, "cell": 1, "nucleus": 2}
    data = check_data(config)
    assert not data.errors
    assert len(data.train_pairs) + len(data.val_pairs) == (12 if split else 6)


def test_masks_of_a_second_annotator_are_no_class(tmp_path: Path) -> None:
    for i in range(6):
        cell, _ = draw(i)
        write(tmp_path, "images/{}.png", {"a/{}.png": cell, "b/{}.png": np.roll(cell, 2, 0)}, i)
    text = propose(tmp_path, "mine")
    assert "masks: a" in text
    assert "Other masks of the same images; to use them: masks: b" in text


@pytest.mark.parametrize("second", ["annotator2", "masks_2", "second_labels", "a_expert_b"])
def test_the_masks_of_the_first_annotator_are_proposed(tmp_path: Path, second: str) -> None:
    for i in range(6):
        cell, nucleus = draw(i)
        other = np.where(nucleus > 0, 200, np.roll(cell, 2, 0))  # also with more values
        write(tmp_path, "images/{}.png", {"masks/{}.png": cell, second + "/{}.png": other}, i)
    text = propose(tmp_path, "mine")
    assert "\n  masks: masks\n" in text
    assert f"Other masks of the same images; to use them: masks: {second}" in text


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_class_masks_with_soft_edges_may_overlap_along_them(tmp_path: Path, ending: str) -> None:
    for i in range(6):
        cell, nucleus = np.zeros((2, *SIZE), np.uint8)
        cell[4 + i : 20 + i, 5:30] = 255
        nucleus[20 + i : 40, 5:30] = 255
        masks = {"cell": cell, "nucleus": nucleus}
        write(tmp_path, "images/{}.png", {}, i)
        (tmp_path / "masks").mkdir(exist_ok=True)
        for name, mask in masks.items():
            image = Image.fromarray(mask)
            if ending == "png":
                image = image.filter(ImageFilter.GaussianBlur(0.8))
            image.save(tmp_path / f"masks/{i}_{name}.{ending}", quality=80)
    config = config_from_dict({"name": "mine", **yaml.safe_load(propose(tmp_path, "mine"))})
    assert config.data.masks == {name: f"masks/{{stem}}_{name}" for name in masks}
    assert config.data.tolerance == 127
    data = check_data(config)
    assert not data.errors
    ids = build_training_reader(config).read(data.train_pairs[0])[1]
    top = 4 + int(data.train_pairs[0].stem)
    assert [ids[top + 8, 15], ids[top + 18, 15], ids[1, 1]] == [1, 2, 0]


def test_label_images_have_each_number_in_one_place() -> None:
    squares = np.kron(np.arange(30, dtype=np.uint8).reshape(5, 6), np.ones((8, 8), np.uint8))
    assert are_label_images([squares])
    assert not are_label_images([np.tile(squares, (1, 2))])  # each in two places
    assert not are_label_images([np.minimum(squares, 3)])  # three classes in 8 bits
    assert are_label_images([np.where(squares < 4, squares, 0).astype(np.uint16)])  # from 1 on
    assert not are_label_images([np.where(squares < 4, 9 * squares, 0).astype(np.uint16)])
    assert not are_label_images([np.stack([squares] * 3, axis=2)])
    assert are_label_images([squares.astype(np.float32)])
    assert not are_label_images([squares + np.float32(0.5)])
    soft = Image.fromarray(np.where(squares % 2, 255, 0).astype(np.uint8)).resize((97, 83), 2)
    assert not are_label_images([np.asarray(soft)])
    assert not are_label_images([squares * 0])
    # Classes that are each in one place, but the same in all masks.
    few = np.where(squares < 4, squares, 0).astype(np.uint16)
    assert not are_label_images([few, few[::-1]])
    apart = np.zeros((40, 40), np.float32)
    apart[2:8, 2:8] = apart[20:28, 20:28] = 1
    assert not are_label_images([apart, 2 * apart.T])
    assert not are_label_images([])
