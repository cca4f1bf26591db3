from pathlib import Path

import numpy as np
import pytest
from helpers import write_png16
from PIL import Image

from unet.data.classes import IGNORE_INDEX, ClassMap, StrayValueError
from unet.data.masks import draw_mask, read_class_masks, read_label_image, read_mask, read_palette

IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_values_become_ids_in_the_order_of_the_classes(tmp_path: Path) -> None:
    classes = ClassMap({"cell": 255, "ground": 0, "edge": 7}, ignore=[9, 10])
    path = save(tmp_path / "a.png", np.array([[0, 255, 7], [9, 10, 0]], np.uint8))
    assert read_mask(path, classes).tolist() == [[1, 0, 2], [IGNORE_INDEX, IGNORE_INDEX, 1]]


def test_16_bit_values_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1000, 60000]], np.uint16))
    assert read_mask(path, ClassMap({"a": 0, "b": 60000, "c": 1000})).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_1_bit_masks_are_0_and_1(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.array([[False, True]])).save(path)
    if ending == "bmp":  # has a palette
        assert read_mask(path, ClassMap({"a": 0, "b": 1})).tolist() == [[0, 1]]
        return
    assert read_mask(path, ClassMap({"a": 0, "b": 1}, ignore=[255])).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"values are 0 and 1, .* write 1 in place of 255"):
        read_mask(path, ClassMap({"a": 0, "b": 255}))
    colours = ClassMap({"a": (0, 0, 0), "b": (255, 255, 255)})
    assert read_mask(path, colours).tolist() == [[0, 1]]


def test_a_palette_is_read_by_index_or_by_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    by_index = ClassMap({"a": 0, "b": 2, "c": 1})
    by_colour = ClassMap({"a": (10, 20, 30), "b": (0, 0, 255), "c": (255, 0, 0)})
    assert read_mask(tmp_path / "a.png", by_index).tolist() == [[0, 2, 1]]
    assert read_mask(tmp_path / "a.png", by_colour).tolist() == [[0, 2, 1]]


def test_grey_stored_as_rgb_is_read_as_grey(tmp_path: Path) -> None:
    grey = np.array([[0, 7]], np.uint8)
    opaque = np.full((1, 2), 255, np.uint8)
    for name, bands in (
        ("rgb", [grey] * 3),
        ("rgba", [grey] * 3 + [opaque]),
        ("la", [grey, opaque]),
    ):
        path = save(tmp_path / f"{name}.png", np.stack(bands, axis=2))
        assert read_mask(path, ClassMap({"a": 0, "b": 7})).tolist() == [[0, 1]]


def test_an_alpha_channel_is_left_out_unless_it_tells_pixels_apart(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[[0, 255], [7, 0]]], np.uint8))
    assert read_mask(path, ClassMap({"a": 0, "b": 7})).tolist() == [[0, 1]]
    path = save(tmp_path / "a.png", np.array([[[0, 255], [0, 0]]], np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: got an alpha channel with values from 0 to 255"):
        read_mask(path, ClassMap({"a": 0, "b": 7}))


@pytest.mark.parametrize(
    "values", [(0, 1, 2), (0, 127, 255), (5, 300, 65535), ((1, 2, 3), (0, 0, 0), (255, 255, 1))]
)
def test_a_drawn_mask_is_read_as_the_same_ids(tmp_path: Path, values: tuple) -> None:
    classes = ClassMap(dict(zip("abc", values, strict=True)))
    draw_mask(IDS, classes).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png", classes), IDS)


def test_an_unknown_value_is_an_error_with_its_pixels_and_the_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1, 3], [3, 0, 254]], np.uint8))
    with pytest.raises(
        ValueError,
        match=r"a\.png: got the mask value 3 \(2 pixels\), 254 \(1 pixel\), "
        r"expected \{ground: 0, cell: 1\}, ignored \[9\]; data\.classes that would fit: "
        r"\{ground: 0, cell: 1, new_1: 3, new_2: 254\}, or data\.ignore: \[9, 3, 254\]$",
    ):
        read_mask(path, ClassMap({"ground": 0, "cell": 1}, ignore=[9]))


def test_many_unknown_values_suggest_a_tolerance(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    with pytest.raises(ValueError, match=r"and 58 more, .*data\.tolerance=127 .*saved as JPEG"):
        read_mask(path, ClassMap({"a": 0, "b": 255}))


def test_no_tolerance_is_suggested_for_classes_with_adjacent_values(tmp_path: Path) -> None:
    numbers = np.arange(8, dtype=np.uint8).reshape(2, 4)
    with pytest.raises(ValueError, match=r"new_6: 7\}, or data\.ignore: \[2, 3, 4, 5, 6, 7\]$"):
        read_mask(save(tmp_path / "a.png", numbers), ClassMap({"a": 0, "b": 1}))
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with pytest.raises(ValueError, match="; correct the mask, which holds too many values"):
        read_mask(save(tmp_path / "b.png", numbers), ClassMap({"a": 0, "b": 1}))


def test_the_size_is_checked_before_the_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(ValueError, match=r"got a mask of 8 x 8 pixels .*expected 9 x 8 as its"):
        read_mask(path, ClassMap({"a": 0, "b": 1}), (9, 8))


def test_16_bit_colours_that_are_colours_of_8_bits_are_read(tmp_path: Path) -> None:
    colours = np.array([[(0, 0, 0), (65535, 0, 257)]], np.uint16)
    write_png16(tmp_path / "a.png", colours)
    classes = ClassMap({"ground": (0, 0, 0), "cell": (255, 0, 1)})
    assert read_mask(tmp_path / "a.png", classes).tolist() == [[0, 1]]


def test_16_bit_colours_are_an_error(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", np.full((2, 2, 3), 9000, np.uint16))
    with pytest.raises(
        ValueError, match=r"a\.png: got a mask of mode RGB, uint16 .* expected\s+colours of 8 bits"
    ):
        read_mask(tmp_path / "a.png", ClassMap({"a": (0, 0, 0), "b": (1, 1, 1)}))


def test_an_unknown_colour_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((2, 2, 3), 9, np.uint8))
    with pytest.raises(ValueError, match=r"got the mask value \[9, 9, 9\] \(4 pixels\)"):
        read_mask(path, ClassMap({"a": (0, 0, 0), "b": (1, 1, 1)}))


def test_colours_need_colours_in_the_config(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8))
    with pytest.raises(ValueError, match=r"got a mask in colours.*as \[R, G, B\]"):
        read_mask(path, ClassMap({"a": 0, "b": 1}))


def test_many_values_mean_one_class(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 127, 128, 7, 300, 65535]], np.uint16))
    classes = ClassMap({"none": [0, 7], "myelin": "127, 128", "cell": "200-70000"})
    assert read_mask(path, classes).tolist() == [[0, 1, 1, 0, 2, 2]]
    assert classes.values == (0, 127, 200)
    path = save(tmp_path / "b.png", np.array([[[1, 1, 1], [2, 2, 2], [3, 3, 3]]], np.uint8))
    colours = ClassMap({"a": [(1, 1, 1), (3, 3, 3)], "b": (2, 2, 2)})
    assert read_mask(path, colours).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB", "I", "F", "I;16"])
def test_masks_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    values = Image.fromarray(ids * 200)
    if mode == "I;16":
        values = Image.fromarray(ids.astype(np.uint16) * 200)
    else:
        values = values.convert(mode)
    values.save(tmp_path / "a.tif")
    assert np.array_equal(read_mask(tmp_path / "a.tif", ClassMap({"a": 0, "b": 200})), ids)


def test_suggested_classes_include_all_given_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    classes = ClassMap({"ground": 0, "cell": 255})
    assert classes.suggest({1: 2}, {0}, 4).endswith("would fit: {ground: 0, cell: 1}")
    assert "{ground: 0, cell: 255, new_1: 1}" in classes.suggest({1: 2}, {0, 1}, 4)
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
    with Image.open(path) as mask:
        mask.load()
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(path)
    with pytest.raises(ValueError, match=r"got the palette index 1 \(1 pixel\), expected"):
        read_mask(path, ClassMap({"ground": 0, "cell": 255}))
    few = np.zeros((40, 40), np.uint8)
    few[0, 0], few[1, 1:9] = 250, 255
    with pytest.raises(ValueError, match=r"or data\.ignore: \[250\]; data\.tolerance=5 takes the"):
        read_mask(save(path, few), ClassMap({"ground": 0, "cell": 255}))


def test_fractional_values_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1.5]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: got 1 pixel such as 1\.5, expected whole"):
        read_mask(tmp_path / "a.tif", ClassMap({"a": 0, "b": 1}))


def test_within_the_tolerance_the_nearest_class_is_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 12, 99, 100, 120, 244]], np.uint8))
    classes = {"a": 0, "b": 100, "c": 255}
    assert read_mask(path, ClassMap(classes, tolerance=20)).tolist() == [[0, 0, 1, 1, 1, 2]]
    assert read_mask(path, ClassMap(classes, ignore=[14], tolerance=20))[0, 1] == 255
    with pytest.raises(StrayValueError, match=r"120 \(1 pixel\), expected") as caught:
        read_mask(path, ClassMap(classes, tolerance=19))
    assert caught.value.pixels == {120: 1}


def test_a_jpeg_of_colours_is_read_with_a_tolerance(tmp_path: Path) -> None:
    ids = np.kron(np.random.default_rng(0).integers(0, 3, (6, 8)), np.ones((9, 9), int))
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 90)], np.uint8)
    Image.fromarray(colours[ids]).save(tmp_path / "a.jpg", quality=90, subsampling=0)
    classes = {"abc"[i]: tuple(colour) for i, colour in enumerate(colours.tolist())}
    with pytest.raises(ValueError, match="saved as JPEG"):
        read_mask(tmp_path / "a.jpg", ClassMap(classes))
    read = read_mask(tmp_path / "a.jpg", ClassMap(classes, tolerance=90))
    assert (read == ids).mean() > 0.97


def test_a_palette_is_kept(tmp_path: Path) -> None:
    image = Image.fromarray(IDS)
    image.putpalette([9, 9, 9, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    palette = read_palette(tmp_path / "a.png")
    assert palette is not None
    assert palette[:3] == ((9, 9, 9), (255, 0, 0), (0, 0, 255))
    classes = ClassMap({"a": 0, "b": 1, "c": 2})
    draw_mask(read_mask(tmp_path / "a.png", classes), classes, palette).save(tmp_path / "b.png")
    assert np.array_equal(read_mask(tmp_path / "b.png", classes), IDS)
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as other:
        assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))
    assert read_palette(save(tmp_path / "c.png", IDS)) is None


def test_binary_masks_are_combined(tmp_path: Path) -> None:
    axon = save(tmp_path / "axon.png", np.array([[0, 255, 0], [0, 255, 0]], np.uint8))
    myelin = save(tmp_path / "myelin.png", np.array([[1, 0, 0], [1, 0, 0]], np.uint8))
    assert read_class_masks([axon, myelin], ["axon", "myelin"]).tolist() == [[2, 1, 0], [2, 1, 0]]
    save(myelin, np.array([[1, 1, 0], [1, 0, 0]], np.uint8))
    with pytest.raises(ValueError, match=r"myelin\.png: got 1 pixel that axon claims too"):
        read_class_masks([axon, myelin], ["axon", "myelin"])
    save(myelin, np.array([[9, 0, 0], [254, 0, 0]], np.uint8))
    with pytest.raises(ValueError, match=r"value 9 \(1 pixel\), 254 \(1 pixel\), expected \{not"):
        read_class_masks([axon, myelin], ["axon", "myelin"])
    assert read_class_masks([axon, myelin], ["axon", "myelin"], tolerance=9)[:, 0].tolist() == [
        0,
        2,
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_label_images_of_any_dtype_are_read(tmp_path: Path, dtype: type) -> None:
    numbers = np.array([[0, 1, 1], [7, 0, 200]], dtype)
    assert np.array_equal(read_label_image(save(tmp_path / "a.tif", numbers), (2, 3)), numbers)


def test_invalid_label_images_are_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.array([[0, -1]], np.int32))
    with pytest.raises(ValueError, match=r"a\.tif: got the number -1 for an object, expected num"):
        read_label_image(path)
    with pytest.raises(ValueError, match=r"a\.tif: got a label image of 1 x 2 pixels .* 3 x 4 as"):
        read_label_image(save(path, np.array([[0, 1]], np.uint8)), (3, 4))
    with pytest.raises(ValueError, match=r"a\.tif: got a label image of mode RGB, expec"):
        read_label_image(save(path, np.zeros((3, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"a\.tif: got 1 pixel such as 0.5, expected whole"):
        read_label_image(save(path, np.array([[0, 0.5]], np.float32)))
