import numpy as np
import pytest
import torch

from unet.visualize import (
    ERROR_COLOUR,
    add_legend,
    draw_confusion_matrix,
    draw_preview_sheet,
    draw_sample_sheet,
    errors_to_rgb,
    fraction_colours,
    image_to_rgb,
    mask_to_rgb,
    overlay,
    weights_to_rgb,
)

COLOURS = [(10, 20, 30), (200, 100, 0)]


def test_an_image_is_stretched_from_black_to_white() -> None:
    shown = image_to_rgb(torch.tensor([[[0.1, 0.1996], [0.3, 0.1]]]))
    assert shown.shape == (2, 2, 3)
    assert shown[:, :, 0].tolist() == [[0, 127], [255, 0]]
    assert image_to_rgb(torch.full((3, 2, 2), 0.7)).max() == 0  # nothing to stretch


def test_classes_are_shown_in_their_colours_and_ignored_pixels_in_white() -> None:
    ids = np.array([[0, 1, 255]], np.uint8)
    assert mask_to_rgb(ids, COLOURS).tolist() == [[[10, 20, 30], [200, 100, 0], [255, 255, 255]]]
    black = np.zeros((1, 3, 3), np.uint8)
    assert overlay(black, ids, COLOURS).tolist() == [[[5, 10, 15], [100, 50, 0], [127, 127, 127]]]


@pytest.mark.parametrize("size", [(20, 30), (300, 40), (7, 500)])
def test_a_preview_sheet_shows_image_target_and_prediction(size: tuple[int, int]) -> None:
    target, prediction = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    rows = [(torch.rand(1, *size), target, prediction)] * 2
    sheet = np.asarray(draw_preview_sheet(rows, ["ground", "cell"], COLOURS))
    width = min(512, round(256 * size[1] / size[0]))  # even of very wide images
    bottom = sheet[-11]  # crosses the panels of the lower row
    assert (bottom[8 + width + 8 : 8 + 2 * width] == COLOURS[0]).all()
    assert (bottom[24 + 2 * width : 24 + 3 * width] == COLOURS[1]).all()
    assert sheet.shape[1] == max(480, 32 + 3 * width)


def test_a_legend_of_many_classes_breaks_into_lines() -> None:
    names = [f"a rather long class name {i}" for i in range(20)]
    rows = [(torch.rand(1, 20, 20), np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8))]
    few = draw_preview_sheet(rows, names[:2], COLOURS)
    many = draw_preview_sheet(rows, names, COLOURS * 10)
    assert many.width == few.width
    assert many.height > few.height + 100


def test_a_sample_sheet_draws_each_mask_over_its_own_image() -> None:
    image, target = torch.zeros(1, 256, 256), np.zeros((256, 256), np.uint8)
    image[0, 100:150, 30:90], target[100:150, 30:90] = 1, 1
    flipped = (image.flip(2), target[:, ::-1].copy())
    sheet = np.asarray(draw_sample_sheet([[(image, target), flipped]], ["ground", "cell"], COLOURS))
    panels = [sheet[-264:-8, 8 + 264 * i : 264 + 264 * i] for i in range(3)]
    assert panels[0][120, 60].tolist() == [255, 255, 255]
    for panel, (shown, mask) in zip(panels[1:], ((image, target), flipped), strict=True):
        assert np.array_equal(panel, overlay(image_to_rgb(shown), mask, COLOURS))


def test_errors_have_one_colour_over_grey_and_ignored_pixels_are_white() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255], [200, 100, 0], [9, 9, 9]]], np.uint8)
    errors, ignored = np.array([[0, 0, 1, 0]], bool), np.array([[0, 0, 0, 1]], bool)
    shown = errors_to_rgb(image, errors, ignored)
    assert shown.tolist() == [[[40] * 3, [193] * 3, list(ERROR_COLOUR), [255] * 3]]


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


def test_a_legend_below_leaves_the_picture_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
    names = ("ground", "a name that is wider than the picture")
    both = np.asarray(add_legend(picture, names, COLOURS[:2]))
    assert np.array_equal(both[:30, :20], picture)
    assert both.shape[1] > 20
    shown = {tuple(colour) for colour in both[30:].reshape(-1, 3).tolist()}
    assert shown >= set(COLOURS[:2])


def test_weights_are_drawn_after_the_mask_from_black_to_white() -> None:
    weights = np.array([[0, 2.5], [5, 10]], np.float16)
    shown = weights_to_rgb(weights)
    assert shown.tolist() == [[[0, 0, 0], [191, 0, 0]], [[255, 127, 0], [255, 255, 255]]]
    assert not weights_to_rgb(np.zeros((2, 2))).any()
    image, target = torch.zeros(1, 256, 256), np.zeros((256, 256), np.uint8)
    weights = np.tile(np.linspace(0, 1, 256), (256, 1))
    row = [(image, target), (image, target)]
    sheet = np.asarray(draw_sample_sheet([row], ["ground", "cell"], COLOURS, [weights]))
    assert np.array_equal(sheet[-264:-8, 8 + 2 * 264 : 264 + 2 * 264], weights_to_rgb(weights))
    assert sheet.shape[1] == 8 + 4 * 264
