from itertools import product

import numpy as np
import pytest

from unet.data.annotations.regions import Bitmap, Ellipse, Polygon, Runs, fill_ring, runs_of_counts


def polygon(*rings: list[list[float]], unit: float | None = 1.0) -> Polygon:
    return Polygon((tuple(np.array(ring, float) for ring in rings),), unit)


def whole(region: Polygon | Ellipse | Bitmap | Runs, size: tuple[int, int]) -> np.ndarray:
    image = np.zeros(size, bool)
    filled = region.fill(size)
    filled.of(image)[:] = filled.mask
    return image


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    inside = whole(polygon([[0, 0], [4, 0], [0, 4]]), (5, 5))
    rows, columns = np.mgrid[:5, :5] + 0.5
    below = rows + columns
    assert inside[below < 4].all()
    assert not inside[below > 4].any()
    assert whole(polygon(square(1.4, 1.6, 2.6, 3.4)), (5, 5)).sum() == 2


def test_random_polygons_agree_with_the_angle_that_their_line_turns_around_a_pixel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        ring = rng.uniform(-3, 15, (int(rng.integers(3, 9)), 2))
        inside = fill_ring(ring, (11, 13))
        for y, x in product(range(11), range(13)):
            away = ring - (x + 0.5, y + 0.5)
            angles = np.arctan2(away[:, 1], away[:, 0])
            steps = np.diff([*angles, angles[0]])
            turns = ((steps + np.pi) % (2 * np.pi) - np.pi).sum() / (2 * np.pi)
            assert inside[y, x] == (round(turns) != 0)


def test_polygons_with_a_common_border_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        middle = rng.uniform(2, 8, 2).round(1)
        corners = square(0, 0, 10, 10)
        parts = [
            fill_ring(np.array([middle, corners[i], corners[(i + 1) % 4]]), (10, 10))
            for i in range(4)
        ]
        assert (np.sum(parts, axis=0) == 1).all()


def test_holes_and_parts() -> None:
    ring = polygon(square(0, 0, 8, 8), square(2, 2, 5, 5), square(5, 5, 6, 6))
    inside = whole(ring, (8, 8))
    assert inside.sum() == 64 - 9 - 1
    assert not inside[2:5, 2:5].any()
    both = Polygon((*ring.parts, (np.array(square(3, 3, 4, 4), float),)))
    assert whole(both, (8, 8)).sum() == 64 - 9 - 1 + 1


def test_what_a_line_that_crosses_itself_goes_around_is_inside() -> None:
    star = [
        [5 + 4 * np.sin(4 * np.pi * i / 5), 5 - 4 * np.cos(4 * np.pi * i / 5)] for i in range(5)
    ]
    assert whole(polygon(star), (10, 10))[5, 5]


def test_regions_beyond_the_image_are_cut_off() -> None:
    filled = polygon(square(-5, -5, 3, 3)).fill((10, 10))
    assert filled.mask.sum() == 9
    assert filled.is_cut
    assert not polygon(square(-0.5, 0, 10.5, 10)).fill((10, 10)).is_cut
    for box in (square(20, 20, 30, 30), square(-9, 0, -2, 5)):
        assert not polygon(box).fill((10, 10)).mask.any()
    assert whole(polygon(square(-1e6, -1e6, 1e6, 1e6)), (10, 10)).all()
    block = np.ones((4, 4), bool)
    assert whole(Bitmap(-2, 8, block), (10, 10)).sum() == 4
    assert not whole(Bitmap(-9, 99, block), (10, 10)).any()
    assert Bitmap(-2, 8, block).fill((10, 10)).is_cut


def test_fractions_become_pixels_of_the_image() -> None:
    assert whole(polygon(square(0.25, 0.5, 0.5, 1), unit=None), (8, 16))[4:, 4:8].all()


def test_an_ellipse_and_its_angle() -> None:
    disc = whole(Ellipse((10, 10), (5, 5)), (20, 20))
    assert abs(disc.sum() - np.pi * 25) < 5
    assert np.array_equal(disc, disc.T)
    lying, standing = whole(Ellipse((10, 10), (6, 2)), (20, 20)), Ellipse((10, 10), (6, 2), 90)
    assert np.array_equal(whole(standing, (20, 20)), lying.T)
    down_right = whole(Ellipse((10, 10), (6, 2), 45), (20, 20))
    assert down_right[13, 13]
    assert not down_right[6, 13]


def test_runs_by_rows_by_columns_and_in_a_box() -> None:
    mask = np.random.default_rng(2).random((5, 7)) > 0.5
    for by_column in (False, True):
        flat = (mask.T if by_column else mask).ravel()
        counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size])
        counts = np.concatenate([[0], counts]) if flat[0] else counts
        runs = runs_of_counts(counts)
        assert np.array_equal(whole(Runs(*runs, by_column), (5, 7)), mask)
        moved = whole(Runs(*runs, by_column, (2, 1, 5, 7)), (10, 10))
        assert np.array_equal(moved[2:7, 1:8], mask)


def test_runs_beyond_the_image_are_an_error() -> None:
    runs = Runs(np.array([30]), np.array([10]), by_column=True)
    with pytest.raises(ValueError, match="up to 40, expected at most 35, as in 5 x 7 pixels"):
        runs.fill((5, 7))
