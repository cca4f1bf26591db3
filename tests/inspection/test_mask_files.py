from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from unet.config.loader import config_from_dict
from unet.inspection.check import check_data
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
