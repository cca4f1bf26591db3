from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import write_png16

from unet.masks import IGNORE_INDEX, ClassMap

IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_values_become_ids_in_the_order_of_the_classes(tmp_path: Path) -> None:
    classes = ClassMap({"cell": 255, "ground": 0, "edge": 7}, ignore=[9, 10])
    path = save(tmp_path / "a.png", np.array([[0, 255, 7], [9, 10, 0]], np.uint8))
    assert classes.read(path).tolist() == [[1, 0, 2], [IGNORE_INDEX, IGNORE_INDEX, 1]]


def test_16_bit_values_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1000, 60000]], np.uint16))
    assert ClassMap({"a": 0, "b": 60000, "c": 1000}).read(path).tolist() == [[0, 2, 1]]


def test_1_bit_masks_are_0_and_255(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[False, True]]))
    assert ClassMap({"a": 0, "b": 255}).read(path).tolist() == [[0, 1]]


def test_a_palette_is_read_by_index_or_by_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    by_index = ClassMap({"a": 0, "b": 2, "c": 1})
    by_colour = ClassMap({"a": (10, 20, 30), "b": (0, 0, 255), "c": (255, 0, 0)})
    assert by_index.read(tmp_path / "a.png").tolist() == [[0, 2, 1]]
    assert by_colour.read(tmp_path / "a.png").tolist() == [[0, 2, 1]]


def test_grey_stored_as_rgb_is_read_as_grey(tmp_path: Path) -> None:
    grey = np.array([[0, 7]], np.uint8)
    opaque = np.full((1, 2), 255, np.uint8)
    for name, bands in (
        ("rgb", [grey] * 3),
        ("rgba", [grey] * 3 + [opaque]),
        ("la", [grey, opaque]),
    ):
        path = save(tmp_path / f"{name}.png", np.stack(bands, axis=2))
        assert ClassMap({"a": 0, "b": 7}).read(path).tolist() == [[0, 1]]


def test_an_alpha_channel_that_means_something_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[[0, 255], [7, 0]]], np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: got an alpha channel with values from 0 to 255"):
        ClassMap({"a": 0, "b": 7}).read(path)


@pytest.mark.parametrize(
    "values", [(0, 1, 2), (0, 127, 255), (5, 300, 65535), ((1, 2, 3), (0, 0, 0), (255, 255, 1))]
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, values: tuple) -> None:
    classes = ClassMap(dict(zip("abc", values, strict=True)))
    classes.write(tmp_path / "a.png", IDS)
    assert np.array_equal(classes.read(tmp_path / "a.png"), IDS)


def test_an_unknown_value_is_named_with_its_pixels_and_the_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1, 3], [3, 0, 254]], np.uint8))
    with pytest.raises(
        ValueError,
        match=r"a\.png: got the mask value 3 \(2 pixels\), 254 \(1 pixel\), "
        r"expected ground 0, cell 1, ignored 9; add the value to data\.classes or data\.ignore",
    ):
        ClassMap({"ground": 0, "cell": 1}, ignore=[9]).read(path)


def test_a_mask_that_lost_its_values_is_told_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(ValueError, match=r"and 57 more, .*resized smoothly, or saved as JPEG"):
        ClassMap({"a": 0, "b": 1}).read(path)


def test_the_size_is_checked_before_the_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(ValueError, match=r"got a mask of 8 x 8 pixels .*expected 9 x 8 as its"):
        ClassMap({"a": 0, "b": 1}).read(path, (9, 8))


def test_16_bit_colours_are_refused(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", np.full((2, 2, 3), 9000, np.uint16))
    with pytest.raises(ValueError, match=r"a\.png: got colours of 16 bits, expected 8"):
        ClassMap({"a": (0, 0, 0), "b": (1, 1, 1)}).read(tmp_path / "a.png")


def test_an_unknown_colour_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((2, 2, 3), 9, np.uint8))
    with pytest.raises(ValueError, match=r"got the mask value \(9, 9, 9\) \(4 pixels\)"):
        ClassMap({"a": (0, 0, 0), "b": (1, 1, 1)}).read(path)


def test_colours_need_colours_in_the_config(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8))
    with pytest.raises(ValueError, match=r"got a mask in colours.*as \[R, G, B\]"):
        ClassMap({"a": 0, "b": 1}).read(path)


def test_contradicting_class_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="got the value 3 twice"):
        ClassMap({"a": 3, "b": 3})
    with pytest.raises(ValueError, match="got the value 3 twice"):
        ClassMap({"a": 3, "b": 4}, ignore=[3])
    with pytest.raises(ValueError, match="expected grey values only or colours"):
        ClassMap({"a": 3, "b": (1, 2, 3)})
    with pytest.raises(ValueError, match=r"got 1 class\(es\), expected 2 to 254"):
        ClassMap({"a": 3})


def test_every_class_has_a_colour_of_its_own() -> None:
    colours = ClassMap({str(i): i for i in range(24)}).colours
    assert len(set(colours)) == 24
    assert ClassMap({"a": (1, 2, 3), "b": (4, 5, 6)}).colours == ((1, 2, 3), (4, 5, 6))
