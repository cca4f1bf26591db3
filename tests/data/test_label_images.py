import numpy as np
import pytest
from scipy import ndimage

from unet.data.label_images import clean, connected_components, number_objects

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
    message = r"^connected components: needs scikit-image; .* pip install .*\[metrics\]"
    with pytest.raises(ValueError, match=message):
        clean(IDS, min_size=2)


def test_objects_of_some_classes_are_numbered() -> None:
    only = number_objects(IDS, [2])
    assert np.array_equal(only > 0, IDS == 2)
    assert not number_objects(IDS, []).any()


def test_components_are_connected_by_edges_not_by_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
    assert connected_components(mask).tolist() == [[1, 0, 0, 2], [0, 3, 0, 2]]


def test_components_equal_scipys() -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random((30, 41)) < (seed + 1) / 21
        assert np.array_equal(connected_components(mask), ndimage.label(mask)[0])


def test_components_of_each_object_of_a_label_image_are_numbered() -> None:
    labels = np.array([[7, 7, 0, 7], [3, 0, 3, 3], [3, 3, 3, 9]])
    components = connected_components(labels)
    assert ((components > 0) == (labels > 0)).all()
    pairs = {*zip(components.flat, labels.flat, strict=True)}
    assert len(pairs) == 1 + 4  # none; two of 7, one of 3 and one of 9
    assert components[0, 0] == components[0, 1] != components[0, 3]
    assert connected_components(labels[:1, :1]).tolist() == [[1]]
