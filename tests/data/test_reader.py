from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, write_instances
from PIL import Image

from unet.data.border_weights import Border, border_weights, separate_cells
from unet.data.classes import ClassMap
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader

READER = PairReader(classes=ClassMap({"ground": 0, "box": 200}), in_channels=1)


BORDER_READER = replace(READER, border=Border(sigma=3.0))


def numbered_pairs(root: Path) -> list[Pair]:
    write_instances(root)
    return find_pairs(root, ["images"], "masks", instances="instances")[0]


def test_a_reader_with_a_border_separates_cells_and_adds_weights(data_root: Path) -> None:
    for pair in numbered_pairs(data_root):
        image, ids, weights = BORDER_READER(pair)
        before, whole = READER(pair)
        assert np.array_equal(image, before)
        with Image.open(str(pair.instances)) as file:
            expected, cells = separate_cells(whole, np.asarray(file))
        assert np.array_equal(ids, expected)
        assert (whole != ids).sum() == 2 * 16  # the height of the box
        assert weights.dtype == np.float16
        np.testing.assert_allclose(weights, border_weights(cells, sigma=3), rtol=1e-3, atol=1e-4)
        assert weights[ids != whole].min() > 5


def test_components_of_the_border_classes_are_cells(tmp_path: Path) -> None:
    mask = np.full((9, 20), 200, np.uint8)
    mask[:, 9:12] = 0
    Image.fromarray(mask).save(tmp_path / "1.png")
    pair = Pair(stem="1", images=(f"{tmp_path}/1.png",), masks=(f"{tmp_path}/1.png",))
    _, ids, weights = replace(READER, border=Border(classes=(1,)))(pair)
    assert np.array_equal(ids > 0, mask > 0)
    assert (weights[:, 10] == np.float16(10 * np.exp(-16 / 50))).all()
    assert not replace(READER, border=Border(classes=(0,)))(pair)[2].any()


def test_a_label_image_of_another_image_is_an_error(data_root: Path) -> None:
    pair = numbered_pairs(data_root)[0]
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(str(pair.instances))
    with pytest.raises(ValueError, match=r"0\.png: got objects that are \d+% ground in .*0\.png"):
        BORDER_READER(pair)
