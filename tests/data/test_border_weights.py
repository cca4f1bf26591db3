import numpy as np
import pytest
from scipy import ndimage

from unet.data.border_weights import border_weights, separate_cells


def slow_border_weights(cells: np.ndarray, weight: float, sigma: float) -> np.ndarray:
    """The equation, with the distance to every cell over the whole image."""
    numbers = [number for number in np.unique(cells) if number != 0]
    if len(numbers) < 2:
        return np.zeros(cells.shape)
    distances = [ndimage.distance_transform_edt(cells != number) for number in numbers]
    d1, d2, *_ = np.sort(distances, axis=0)
    return np.where(cells == 0, weight * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)


def discs(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: size[0], : size[1]]
    cells = np.zeros(size, np.uint16)
    for number in rng.permutation(count) + 7:
        centre, radius = rng.uniform((0, 0), size), rng.uniform(2, 12)
        cells[np.hypot(y - centre[0], x - centre[1]) < radius] = number
    return cells


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "sigma"), [(2, 5.0), (20, 5.0), (40, 1.5), (12, 20.0)])
def test_weights_are_those_of_the_equation(seed: int, count: int, sigma: float) -> None:
    cells = discs(count, (90, 120), seed)
    weights = border_weights(cells, weight=10, sigma=sigma)
    assert weights.dtype == np.float32
    expected = slow_border_weights(cells, 10, sigma)
    # exp(-5^2 / 2) of the weight is taken for 0.
    np.testing.assert_allclose(weights, expected, atol=10 * np.exp(-12.5) + 1e-5)
    assert count == 2 or weights.max() > 1


def test_a_gap_of_a_pixel_has_almost_the_whole_weight() -> None:
    cells = np.array([[1, 1, 0, 2, 0, 0, 0, 0]])
    weights = border_weights(cells, weight=10, sigma=5)
    squares = np.array([1 + 1, 1 + 3, 2 + 4, 3 + 5, 4 + 6]) ** 2
    expected = 10 * np.exp(-squares / 50)
    np.testing.assert_allclose(weights[0, [2, 4, 5, 6, 7]], expected, rtol=1e-6)
    assert not weights[0, [0, 1, 3]].any()  # nothing extra inside cells


@pytest.mark.parametrize("cells", [np.zeros((5, 6), int), np.eye(6, dtype=int), np.ones((4, 3))])
def test_without_a_second_cell_nothing_weighs_more(cells: np.ndarray) -> None:
    assert not border_weights(cells).any()


def test_cells_that_fill_the_image_have_nothing_between() -> None:
    assert not border_weights(np.array([[3, 3, 9], [3, 9, 9]])).any()


def test_touching_cells_are_separated() -> None:
    cells = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 2, 3]])
    ids = np.where(cells > 0, 1, 0).astype(np.uint8)
    separated, labels = separate_cells(ids, cells)
    assert labels.tolist() == [[1, 1, 0, 0, 2, 2], [1, 1, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0]]
    assert np.array_equal(separated, labels > 0)
    assert separated.dtype == np.uint8
    assert border_weights(labels)[0, 2] == pytest.approx(10 * np.exp(-9 / 50))
    assert ids.all(axis=1).tolist() == [True, True, False]  # the input is unchanged


def test_cells_are_not_separated_from_another_class_nor_on_ignored_pixels() -> None:
    cells, ids = np.array([[1, 1, 2, 2, 3, 3]]), np.array([[1, 1, 2, 255, 255, 2]], np.uint8)
    for before, after in zip((ids, cells), separate_cells(ids, cells), strict=True):
        assert np.array_equal(before, after)
