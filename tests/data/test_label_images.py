import numpy as np
import pytest

from unet.data.label_images import clean, number_objects

IDS = np.array(
    [
        [1, 1, 0, 2, 0],
        [1, 0, 0, 2, 1],
        [0, 1, 0, 0, 1],
        [2, 2, 2, 0, 0],
    ],
    np.uint8,
)


def test_small_objects_become_background() -> None:
    expected = IDS.copy()
    expected[2, 1] = 0  # touches another by a corner only
    assert np.array_equal(clean(IDS, min_size=2), expected)
    assert np.array_equal(clean(IDS, min_size=1), IDS)
    assert not clean(IDS, min_size=4).any()


def test_each_class_keeps_its_largest_object() -> None:
    expected = np.zeros_like(IDS)
    expected[:2, :2] = [[1, 1], [1, 0]]
    expected[3, :3] = 2
    assert np.array_equal(clean(IDS, keep_largest=True), expected)
    tie = np.array([[1, 0, 1]])
    assert clean(tie, keep_largest=True).tolist() == [[1, 0, 0]]
    assert not clean(tie, min_size=2, keep_largest=True).any()


def test_a_mask_of_background_stays() -> None:
    empty = np.zeros((3, 4), np.uint8)
    assert not clean(empty, min_size=5, keep_largest=True).any()
    assert not number_objects(empty).any()


def test_objects_are_numbered_class_by_class() -> None:
    numbers = number_objects(IDS)
    assert numbers.tolist() == [
        [1, 1, 0, 4, 0],
        [1, 0, 0, 4, 2],
        [0, 3, 0, 0, 2],
        [5, 5, 5, 0, 0],
    ]
    assert numbers.dtype == np.int32


def test_without_scikit_image_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unet.runtime.optional.find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"needs scikit-image; install it with pip install .unet\[metrics"
    ):
        clean(IDS, min_size=2)


def test_objects_of_some_classes_are_numbered() -> None:
    only = number_objects(IDS, [2])
    assert np.array_equal(only > 0, IDS == 2)
    assert not number_objects(IDS, []).any()
