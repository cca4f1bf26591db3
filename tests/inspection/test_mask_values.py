from pathlib import Path

import numpy as np
import pytest
from helpers import write_png16
from PIL import Image, ImageFilter

from unet.inspection.mask_values import count_values, find_classes


def save(path: Path, mask: Image.Image | np.ndarray) -> tuple[str, None]:
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    image.save(path)
    return str(path), None


def test_pixels_and_files_of_each_value_are_counted(tmp_path: Path) -> None:
    grey = np.array([[0, 0, 7], [7, 7, 9]], np.uint8)
    palette = Image.fromarray(grey % 3, mode="P")  # 0 0 1 / 1 1 0
    red = np.zeros((2, 3, 3), np.uint8)
    red[0, 0] = 255, 0, 0
    palette.putpalette([5, 5, 5, 80, 90, 100])
    masks = [
        save(tmp_path / "grey.png", grey),
        save(tmp_path / "alpha.png", np.stack([grey, grey * 0 + 200], axis=2)),
        save(tmp_path / "as_colours.png", np.stack([grey] * 3, axis=2)),
        save(tmp_path / "bits.png", Image.fromarray(grey > 0)),
        save(tmp_path / "palette.png", palette),
    ]
    counts = count_values(masks)
    assert counts.pixels == {0: 2 * 4 + 3, 7: 3 * 3, 9: 3, 1: 3 + 4}
    assert counts.files == {0: 5, 7: 3, 9: 3, 1: 2}
    assert counts.most == 3
    assert frozenset((7, 9)) in counts.together
    assert frozenset((7, 1)) not in counts.together
    assert count_values([masks[3], save(tmp_path / "red.png", red)]).together == {
        frozenset(((0, 0, 0), (255, 255, 255))),
        frozenset(((0, 0, 0), (255, 0, 0))),
    }


def test_colours_of_16_bits_count_as_those_of_8_bits(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", np.array([[(0, 0, 0), (65535, 0, 257)]], np.uint16))
    assert count_values([(str(tmp_path / "a.png"), None)]).pixels == {(0, 0, 0): 1, (255, 0, 1): 1}


def test_absorbed_pixels_count_for_the_class_that_absorbs_them(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 8:40] = 255
    image = Image.fromarray(mask).filter(ImageFilter.BoxBlur(2))
    found = find_classes(count_values([save(tmp_path / "a.png", image)]))
    assert found.absorbed
    assert sum(found.fractions.values()) == pytest.approx(1)
    assert found.fractions["foreground"] == pytest.approx(32 * 32 / 64**2, abs=0.01)


def test_grey_masks_among_coloured_masks_count_as_coloured(tmp_path: Path) -> None:
    red = np.zeros((2, 3, 3), np.uint8)
    red[0, 0] = 255, 0, 0
    black = save(tmp_path / "black.png", np.zeros((2, 3), np.uint8))
    counts = count_values([save(tmp_path / "red.png", red), black])
    assert counts.pixels == {(0, 0, 0): 5 + 6, (255, 0, 0): 1}
    assert counts.files == {(0, 0, 0): 2, (255, 0, 0): 1}


def test_unreadable_masks_are_left_out_and_fractions_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    good = save(tmp_path / "good.png", np.zeros((2, 2), np.uint8))
    assert count_values([(str(tmp_path / "bad.png"), None), good]).pixels == {0: 4}
    whole = save(tmp_path / "whole.tif", np.full((2, 2), 3, np.float32))
    assert count_values([whole]).pixels == {3: 4}
    with pytest.raises(
        ValueError, match=r"half\.tif: got fractions or NaN in a mask, expected whole"
    ):
        count_values([save(tmp_path / "half.tif", np.full((2, 2), 0.5, np.float32))])


def test_both_roundings_of_half_are_one_class_if_no_mask_has_both(tmp_path: Path) -> None:
    """A mask of 0, 127.5 and 255, saved by two programs."""
    halves = [
        np.repeat(np.array([[0, value, 255]] * 9, np.uint8), 8, axis=1) for value in (127, 128)
    ]
    apart = [save(tmp_path / f"{i}.png", half) for i, half in enumerate(halves)]
    found = find_classes(count_values(apart))
    assert [*found.values.values()] == [[0], [127, 128], [255]]
    assert "127 and 128 are half of 255, and no mask has both: they are one class." in found.notes
    both = save(tmp_path / "both.png", np.concatenate(halves))
    found = find_classes(count_values([both]))
    assert [*found.values.values()] == [[0], [127], [128], [255]]


@pytest.mark.parametrize("ids", [(24, 25, 26, 27, 28), (200, 201), (1, 2)])
def test_neighbouring_class_ids_are_classes_of_their_own(
    tmp_path: Path, ids: tuple[int, ...]
) -> None:
    """Each is in other masks, as the classes of street scenes are."""
    masks = []
    for i in range(20):
        mask = np.zeros((40, 50), np.uint8)
        mask[5:30, 10:30] = ids[i % len(ids)]
        masks.append(save(tmp_path / f"{i}.png", mask))
    found = find_classes(count_values(masks))
    assert [*found.values.values()] == [[0], *([value] for value in ids)]
    assert (found.tolerance, found.ignore, found.notes) == (0, [], [])


def ring(values: tuple[int, int, int], width: int) -> np.ndarray:
    """A disc with a rim."""
    y, x = np.mgrid[:80, :90]
    distance = np.hypot(y - 40, x - 45)
    return np.array(values, np.uint8)[(distance < 30).astype(int) + (distance < 30 - width)]


def test_values_along_edges_only_are_no_classes_but_those_that_fill_areas_are(
    tmp_path: Path,
) -> None:
    wide = find_classes(count_values([save(tmp_path / "wide.png", ring((0, 127, 255), 6))]))
    assert [*wide.values.values()] == [[0], [127], [255]]
    thin = find_classes(count_values([save(tmp_path / "thin.png", ring((0, 128, 255), 1))]))
    assert [*thin.values.values()] == [[0], [255]]
    assert (thin.tolerance, thin.absorbed) == (127, [128])
    assert "128: only along the edges of other values" in thin.notes[0]
    # Between 0 and 2, nothing is an edge.
    index = find_classes(count_values([save(tmp_path / "index.png", ring((0, 1, 2), 1))]))
    assert [*index.values.values()] == [[0], [1], [2]]


def test_the_largest_class_is_named_where_it_is_not_the_first(tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.png", np.where(ring((0, 1, 1), 1) > 0, 0, 255).astype(np.uint8))
    found = find_classes(count_values([mask]))
    assert found.notes[0].startswith("class_255 has most of the pixels. If it is the background, ")


@pytest.mark.parametrize("quality", [75, 90, 95, 98])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_jpeg_masks_have_two_classes_and_a_tolerance(
    tmp_path: Path, quality: int, ending: str
) -> None:
    """Also where the JPEG file was converted to PNG."""
    jpeg, path = tmp_path / "a.jpg", tmp_path / f"b.{ending}"
    Image.fromarray(ring((0, 255, 255), 1)).save(jpeg, quality=quality)
    with Image.open(jpeg) as image:
        image.save(path, **({"quality": quality} if ending == "jpg" else {}))
    found = find_classes(count_values([(str(path), None)]))
    values = [value for value, *_ in found.values.values()]
    assert len(values) == 2
    assert values[0] < 8
    assert values[1] > 247
    assert 0 < found.tolerance < 128


def test_the_fractions_of_classes_are_found(tmp_path: Path) -> None:
    mask = np.zeros((10, 100), np.uint8)
    mask[:, 60:] = 1
    mask[:, 99:] = 2
    found = find_classes(count_values([save(tmp_path / "mask.png", mask)]))
    assert found.values == {"background": [0], "class_1": [1], "class_2": [2]}
    assert found.fractions == pytest.approx({"background": 0.6, "class_1": 0.39, "class_2": 0.01})


def test_stray_values_are_near_a_class_or_far_from_all(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 60:] = 200
    mask[0, :2] = 9, 110
    found = find_classes(count_values([save(tmp_path / "mask.png", mask)]))
    assert found.values == {"background": [0], "foreground": [200]}
    assert (found.absorbed, found.tolerance, found.ignore) == ([9, 110], 90, [])
    mask[mask == 200] = 1
    found = find_classes(count_values([save(tmp_path / "mask.png", mask)]))
    assert (found.absorbed, found.tolerance, found.ignore) == ([], 0, [9, 110])


def test_255_above_consecutive_values_is_ignored(tmp_path: Path) -> None:
    mask = np.repeat(np.array([[0, 1, 2, 255]], np.uint8), 9, axis=0)
    found = find_classes(count_values([save(tmp_path / "mask.png", mask)]))
    assert [*found.values.values()] == [[0], [1], [2]]
    assert found.ignore == [255]
    assert found.notes[0].startswith("255 stands apart from the other values")
