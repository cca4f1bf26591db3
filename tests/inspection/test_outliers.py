from pathlib import Path

import numpy as np
import pytest
from helpers import write_pairs
from PIL import Image

from unet.data.pairing import find_pairs
from unet.inspection.outliers import find_outliers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "data", 8)
    return tmp_path / "data"


def outliers(root: Path) -> dict[str, list[str]]:
    pairs, _ = find_pairs(root, ["images"], "masks")
    return {pair.stem: unlike for pair, unlike in find_outliers(pairs)}


def test_a_pair_unlike_all_others_in_two_traits_is_an_outlier(root: Path) -> None:
    assert outliers(root) == {}
    for folder in ("images", "masks"):
        Image.effect_noise((90, 70), 60).convert("RGB").save(root / folder / "figure.png")
    words = ["size", "type of the image", "type of the mask"]
    assert outliers(root) == {"figure": words}


def test_another_size_alone_makes_no_outlier_unless_the_values_are_foreign_too(root: Path) -> None:
    box = np.zeros((70, 90), np.uint8)
    box[20:40, 20:40] = 200
    for folder in ("images", "masks"):
        Image.fromarray(box).save(root / folder / "large.png")
    assert outliers(root) == {}
    Image.effect_noise((90, 70), 60).save(root / "masks" / "large.png")
    assert outliers(root) == {"large": ["size", "values of the mask"]}


def test_traits_in_which_many_pairs_differ_do_not_count(root: Path) -> None:
    for i in range(3):
        for folder in ("images", "masks"):
            Image.effect_noise((90, 70), 60).convert("RGB").save(root / folder / f"{i}.png")
    assert outliers(root) == {}
