import math

import numpy as np
import pytest
import torch

from unet.data.classes import ClassMap
from unet.visualize import (
    draw_confusion_matrix,
    draw_legend,
    draw_preview_sheet,
    draw_sample_sheet,
    error_colours,
    errors_to_rgb,
    find_errors,
    fraction_colours,
    image_to_rgb,
    mask_to_rgb,
    objects_to_rgb,
    overlay,
    weights_to_rgb,
)

COLOURS = [(10, 20, 30), (200, 100, 0)]


def test_an_image_is_stretched_from_black_to_white() -> None:
    ramp = torch.linspace(0.1, 0.3, 1000).reshape(1, 20, 50)
    shown = image_to_rgb(ramp)
    assert shown.shape == (20, 50, 3)
    assert (shown[0, 0] == 0).all()
    assert (shown[-1, -1] == 255).all()
    assert abs(int(shown[10, 0, 0]) - 128) < 2
    assert image_to_rgb(torch.full((3, 2, 2), 0.7)).max() == 0  # nothing to stretch


def test_a_few_bright_pixels_do_not_darken_an_image() -> None:
    image = torch.linspace(0, 0.02, 10000).reshape(1, 100, 100)
    image[0, 50, 50] = 1
    assert 100 < image_to_rgb(image).mean() < 155
    assert 100 < image_to_rgb(image, stretch=False).mean() < 155  # as the image is dark


def test_bright_images_can_be_shown_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(30, 200, (3, 20, 30), np.uint8)
    shown = image_to_rgb(torch.from_numpy(pixels / np.float32(255)), stretch=False)
    assert np.array_equal(shown, pixels.transpose(1, 2, 0))
    measured = torch.linspace(-3, 900, 600).reshape(1, 20, 30)  # no brightness from 0 to 1
    assert image_to_rgb(measured, stretch=False).max() == 255


def test_missing_pixels_are_black_and_change_no_others() -> None:
    image = torch.linspace(0.5, 1, 600).reshape(1, 20, 30)
    image[0, :5] = torch.nan
    shown = image_to_rgb(image)
    assert (shown[:5] == 0).all()
    assert shown[5, 0, 0] < 5
    for stretch in (True, False):
        assert image_to_rgb(torch.full((1, 2, 2), torch.nan), stretch).max() == 0


def test_classes_are_shown_in_their_colours_and_ignored_pixels_in_white() -> None:
    ids = np.array([[0, 1, 255]], np.uint8)
    assert mask_to_rgb(ids, COLOURS).tolist() == [[[10, 20, 30], [200, 100, 0], [255, 255, 255]]]


def test_an_overlay_has_contours_a_light_fill_and_an_unchanged_background() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    ids = np.zeros((30, 40), np.uint8)
    ids[5:15, 10:30] = 1
    drawn = overlay(picture, ids, mask_to_rgb(ids, COLOURS))
    assert np.array_equal(drawn[ids == 0], picture[ids == 0])
    for edge in (drawn[5, 10:30], drawn[14, 10:30], drawn[5:15, 10], drawn[5:15, 29]):
        assert (edge == COLOURS[1]).all()
    inside, expected = drawn[6:14, 11:29], 0.75 * picture[6:14, 11:29] + 0.25 * np.array(COLOURS[1])
    assert np.abs(inside - expected).max() <= 0.5


def test_objects_that_touch_have_contours_and_colours_of_their_own() -> None:
    numbers = np.repeat(np.arange(6), 5)[None].repeat(20, axis=0)
    colours = objects_to_rgb(numbers)
    assert len({tuple(colour) for colour in colours[0].tolist()}) == 6
    drawn = overlay(np.zeros((20, 30, 3), np.uint8), numbers, colours)
    assert (drawn[:, :5] == 0).all()
    assert (drawn[:, 9:11] == colours[:, 9:11]).all()  # both sides of a border
    assert (drawn[:, 12] < colours[:, 12]).any()


@pytest.mark.parametrize("size", [(20, 30), (300, 40), (7, 500)])
def test_a_preview_sheet_shows_name_image_target_prediction_and_errors(
    size: tuple[int, int],
) -> None:
    target, prediction = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    rows = [("a", torch.rand(1, *size), target, prediction)] * 2
    sheet = np.asarray(draw_preview_sheet(rows, ["ground", "cell"], COLOURS))
    scale = min(256 / (size[0] * size[1]) ** 0.5, 512 / max(size))  # equal areas
    width = round(scale * size[1])
    bottom = sheet[-11]  # crosses the panels of the lower row
    panels = [bottom[8 + i * (width + 8) :][:width] for i in range(4)]
    assert (panels[1] == COLOURS[0]).all()
    assert (panels[2] == COLOURS[1]).all()
    assert (panels[3] == error_colours(COLOURS)["invented"]).all()
    assert sheet.shape[1] >= 8 + 4 * (width + 8)
    renamed = [("another name", *row[1:]) for row in rows]
    assert not np.array_equal(np.asarray(draw_preview_sheet(renamed, ["", ""], COLOURS)), sheet)


def test_panels_of_narrow_and_wide_images_follow_each_other_without_gaps() -> None:
    rows = []
    for size in ((400, 100), (100, 400)):
        ids = np.ones(size, np.uint8)
        rows.append(("a", torch.rand(1, *size), ids, ids))
    sheet = np.asarray(draw_preview_sheet(rows, ["ground", "cell"], COLOURS))
    for row, width in ((sheet[-200], 128), (sheet[-20], 512)):
        for i in (1, 2):  # target and prediction
            assert (row[8 + i * (width + 8) :][:width] == COLOURS[1]).all()


def test_a_long_name_is_cut_to_the_width_of_its_sheet() -> None:
    ids = np.zeros((20, 20), np.uint8)
    sizes = {
        draw_preview_sheet([(name, torch.rand(1, 20, 20), ids, ids)], ["a", "b"], COLOURS).size
        for name in ("a", "w" * 500, "\N{CJK UNIFIED IDEOGRAPH-7D30}" * 90)
    }
    assert len(sizes) == 1


def test_a_legend_of_many_classes_breaks_into_lines() -> None:
    names = [f"a rather long class name {i}" for i in range(20)]
    few = draw_legend(list(zip(names[:2], COLOURS, strict=True)))
    many = draw_legend(list(zip(names, COLOURS * 10, strict=True)))
    assert many.width == few.width
    assert many.height > few.height + 100
    wide = draw_legend([("a name that is wider than the picture", COLOURS[0])], width=20)
    assert wide.width > 20
    shown = {tuple(colour) for colour in np.asarray(few).reshape(-1, 3).tolist()}
    assert shown >= set(COLOURS)


def test_a_sample_sheet_draws_each_mask_over_its_own_image_in_colour() -> None:
    image, target = torch.rand(3, 256, 256), np.zeros((256, 256), np.uint8)
    image[0, 100:150, 30:90], target[100:150, 30:90] = 1, 1
    flipped = (image.flip(2), target[:, ::-1].copy())
    rows = [("a", [(image, target), flipped])]
    sheet = np.asarray(draw_sample_sheet(rows, ["ground", "cell"], COLOURS))
    panels = [sheet[-264:-8, 8 + 264 * i : 264 + 264 * i] for i in range(3)]
    assert np.array_equal(panels[0], image_to_rgb(image))
    for panel, (shown, mask) in zip(panels[1:], ((image, target), flipped), strict=True):
        expected = overlay(image_to_rgb(shown), mask, mask_to_rgb(mask, COLOURS))
        assert np.array_equal(panel, expected)


def test_missed_and_invented_pixels_have_colours_of_their_own() -> None:
    target = np.array([[0, 1, 1, 0, 255, 2, 2]], np.uint8)
    prediction = np.array([[0, 1, 0, 1, 0, 2, 1]], np.uint8)
    errors = find_errors(target, prediction)
    assert [np.flatnonzero(one).tolist() for one in errors] == [[2], [3], [6]]
    image = np.full((1, 7, 3), 100, np.uint8)
    image[0, 1] = 255
    colours = [[0, 255, 255], [230, 0, 126], [120, 60, 255]]
    shown = errors_to_rgb(image, errors, target == 255, map(tuple, colours))[0].tolist()
    expected = [[100] * 3, [193] * 3, *colours[:2], [255] * 3, [100] * 3, colours[2]]
    assert shown == expected
    half = errors_to_rgb(image, errors * 0.5, target == 255, map(tuple, colours))[0]
    assert np.abs(half[2] - (100 + np.array(colours[0])) / 2).max() <= 0.5


@pytest.mark.parametrize(
    "classes",
    [
        ClassMap({f"class {i}": i for i in range(8)}).colours,
        [(0, 0, 0), (0, 255, 255), (230, 0, 120)],
        [(0, 0, 0), (130, 60, 250), (255, 0, 0)],
    ],
)
def test_no_error_has_nearly_the_colour_of_a_class(classes: list[tuple[int, int, int]]) -> None:
    colours = error_colours(classes)
    assert list(colours) == ["missed", "invented", "wrong class"]
    for colour in colours.values():
        others = [*classes, *colours.values(), (255, 255, 255)]
        assert min(math.dist(colour, one) for one in others if one is not colour) > 100


def test_errors_have_colours_even_if_a_class_has_each_of_them() -> None:
    classes = [(r, g, b) for r in (0, 120, 255) for g in (0, 120, 255) for b in (0, 120, 255)]
    assert len(set(error_colours(classes).values())) == 3


@pytest.mark.parametrize("count", [2, 12, 40])
def test_a_confusion_matrix_is_drawn_with_a_square_for_each_pair(count: int) -> None:
    matrix = np.eye(count, dtype=np.int64) * 30
    matrix[0, 1], matrix[1] = 10, 0  # no target has class 1
    picture = np.asarray(
        draw_confusion_matrix(matrix, [f"a rather long name {i}" for i in range(count)])
    )
    top, left = (size - 16 - 72 * count for size in picture.shape[:2])

    def colour(row: int, column: int) -> tuple[int, ...]:
        return tuple(picture[top + row * 72 + 6, left + column * 72 + 6].tolist())

    assert colour(0, 0) == fraction_colours(0.75)[0]
    assert colour(0, 1) == fraction_colours(0.25)[0]
    assert colour(1, 0) == colour(1, 1) == (235, 235, 235)
    assert colour(count - 1, 0) == ((235, 235, 235) if count == 2 else (255, 255, 255))


def test_numbers_in_a_confusion_matrix_are_readable() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3295 for c in colour]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    for percent in (*range(101), float("nan")):
        low, high = sorted(map(luminance, fraction_colours(percent / 100)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, percent  # level AA of WCAG 2


def test_long_and_short_names_have_room_beside_a_confusion_matrix() -> None:
    matrix = np.eye(2, dtype=np.int64)
    short, long = (draw_confusion_matrix(matrix, [name, "b"]).size for name in ("a", "w" * 60))
    assert short[0] < long[0] < 700  # shortened
    assert short[1] < long[1]  # upright


def test_weights_are_drawn_after_the_mask_from_black_to_white_with_a_scale() -> None:
    weights = np.array([[0, 2.5], [5, 10]], np.float16)
    shown = weights_to_rgb(weights, 10)
    assert shown.tolist() == [[[0, 0, 0], [191, 0, 0]], [[255, 127, 0], [255, 255, 255]]]
    assert not weights_to_rgb(np.zeros((2, 2)), 0).any()
    image, target = torch.zeros(1, 256, 256), np.zeros((256, 256), np.uint8)
    weights = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (256, 1))
    rows = [("a", [(image, target), (image, target)])] * 2
    drawn = draw_sample_sheet(rows, ["ground", "cell"], COLOURS, [weights, 2 * weights])
    plain = draw_sample_sheet(rows, ["ground", "cell"], COLOURS)
    sheet, scale = np.asarray(drawn)[:-32], np.asarray(drawn)[-32:]
    assert np.array_equal(
        sheet[-264:-8, 8 + 2 * 264 : 264 + 2 * 264], weights_to_rgb(2 * weights, 2)
    )
    upper = sheet[-264 - 312 : -8 - 312, 8 + 2 * 264 : 264 + 2 * 264]
    assert np.array_equal(upper, weights_to_rgb(weights, 2))  # one scale for all rows
    assert sheet.shape == (plain.height, plain.width + 264, 3)
    colours = {tuple(colour) for colour in scale.reshape(-1, 3).tolist()}
    assert {(255, 0, 0), (255, 255, 0)} <= {
        (r // 250 * 255, g // 250 * 255, b) for r, g, b in colours
    }
