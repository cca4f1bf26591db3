import numpy as np
import pytest
from PIL import Image, ImageFilter

from unet.data.classes import ClassMap, StrayValueError


def test_contradictory_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match="got the value 3 twice"):
        ClassMap({"a": 3, "b": 3})
    with pytest.raises(ValueError, match="got the value 3 twice"):
        ClassMap({"a": 3, "b": 4}, ignore=[3])
    with pytest.raises(ValueError, match="expected grey values only or colours"):
        ClassMap({"a": 3, "b": (1, 2, 3)})
    with pytest.raises(ValueError, match=r"got 1 class\(es\), expected 2 to 253"):
        ClassMap({"a": 3})


@pytest.mark.parametrize("values", ["", "1-", "3-1", "a", "--1", "1;2"])
def test_invalid_text_is_an_error(values: str) -> None:
    with pytest.raises(ValueError, match=r"expected values such as '127, 128' or '1-255'"):
        ClassMap({"a": 0, "b": values})


def test_values_that_cannot_be_written_are_an_error() -> None:
    with pytest.raises(ValueError, match="got 3000000000, expected values of 32-bit integers"):
        ClassMap({"a": 0, "b": "3000000000"})
    with pytest.raises(ValueError, match=r"got \[300, 301, 302\], expected colours up"):
        ClassMap({"a": (0, 0, 0), "b": (300, 301, 302)})


def test_negative_and_large_values_are_classes() -> None:
    classes = ClassMap({"ground": -1, "road": "70000-70009", "roof": 5}, ignore=["-9--5"])
    ids = classes.decode(np.array([[-1, 70003], [5, -7]], np.int32), "a.tif")
    assert ids.tolist() == [[0, 1], [2, 255]]
    encoded = classes.encode(np.array([[0, 1, 2]], np.uint8))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [[-1, 70000, 5]]


def test_every_class_has_another_colour() -> None:
    colours = ClassMap({str(i): i for i in range(24)}).colours
    assert len(set(colours)) == 24
    assert ClassMap({"a": (1, 2, 3), "b": (4, 5, 6)}).colours == ((1, 2, 3), (4, 5, 6))


def test_values_that_fill_areas_are_classes_and_soft_edges_get_a_tolerance() -> None:
    classes = ClassMap({"a": 0, "b": 255})
    values = np.array([[0, 30, 60], [90, 120, 150], [180, 210, 240]], np.uint8)
    areas = np.kron(values, np.ones((40, 40), np.uint8))
    with pytest.raises(StrayValueError, match=r"data\.classes that would fit: .* new_8: 240\}"):
        classes.decode(areas, "mask")
    box = Image.fromarray(np.pad(np.full((40, 40), 255, np.uint8), 20))
    soft = np.asarray(box.filter(ImageFilter.GaussianBlur(2)))
    with pytest.raises(StrayValueError, match=r"data\.tolerance=12\d takes the nearest class, as "):
        classes.decode(soft, "mask")
