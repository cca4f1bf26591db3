import numpy as np
import pytest

from unet.metrics.label_errors import (
    REACH,
    WIDTHS,
    boundary_length,
    coarse,
    disputed_regions,
    object_sizes,
    pixel_costs,
    shift_costs,
    width_costs,
)


def draw_disc(radius: float, dy: float = 0, dx: float = 0) -> np.ndarray:
    y, x = np.ogrid[:60, :70]
    return (np.hypot(y - 30 - dy, x - 35 - dx) <= radius).astype(np.uint8)


def sure_of(mask: np.ndarray, p: float = 0.9) -> np.ndarray:
    """Probabilities (2, H, W) of a model that is sure of a mask."""
    one = np.where(mask == 1, p, 1 - p).astype(np.float32)
    return np.stack([1 - one, one])


def test_the_lowest_cost_is_that_of_the_shift() -> None:
    mask, seen = draw_disc(12, dy=3, dx=-5), sure_of(draw_disc(12))
    costs = shift_costs(mask, seen)
    y, x = np.unravel_index(costs.argmin(), costs.shape)
    assert (y - REACH, x - REACH) == (3, -5)
    inner = (slice(REACH, -REACH), slice(REACH, -REACH))
    unmoved = pixel_costs(mask, seen)[inner].sum()
    assert costs[REACH, REACH] == pytest.approx(unmoved, rel=1e-4)


@pytest.mark.parametrize("wider", [-3, 0, 2])
def test_the_lowest_cost_is_that_of_the_width(wider: int) -> None:
    costs = width_costs(draw_disc(12 + wider), sure_of(draw_disc(12)))
    assert np.isnan(costs[0]).all()
    assert WIDTHS[int(costs[1].argmin())] == -wider


def test_a_class_without_pixels_or_without_others_has_no_width() -> None:
    for ids in (np.zeros((9, 9), np.uint8), np.ones((9, 9), np.uint8)):
        assert np.isnan(width_costs(ids, sure_of(ids))).all()


def test_ignored_pixels_cost_nothing() -> None:
    mask = draw_disc(12)
    before = pixel_costs(mask, sure_of(draw_disc(9)))
    mask[30:] = 255
    costs = pixel_costs(mask, sure_of(draw_disc(9)))
    assert (costs[:30] == before[:30]).all()
    assert before[30:].any()
    assert not costs[30:].any()
    assert boundary_length(np.full((9, 9), 255, np.uint8)) == 0


def test_coarse_pictures_of_a_mask_and_its_prediction_are_alike() -> None:
    def picture(mask: np.ndarray) -> np.ndarray:
        return coarse(sure_of(mask, 1.0))

    own, other = picture(draw_disc(12, 5, 9)), picture(draw_disc(12, -15, -20))
    assert own @ coarse(sure_of(draw_disc(13, 5, 9), 0.8)) > 0.9
    assert own @ other < 0.1
    assert np.abs(picture(np.zeros((60, 70), np.uint8))).max() == 0


def test_a_missing_object_is_a_region_and_a_thin_rim_is_none() -> None:
    seen = sure_of(draw_disc(12, -10) | draw_disc(7, 15))
    regions = disputed_regions(draw_disc(11, -10), seen, np.array([0.8, 0.8]), depth=3)
    assert len(regions) == 1
    (region,) = regions
    assert (region.target, region.prediction) == (0, 1)
    assert region.area == pytest.approx(draw_disc(7, 15).sum(), rel=0.05)
    assert region.confidence == pytest.approx(0.8)
    found = np.zeros((60, 70), np.uint8)
    found[region.box] = region.pixels
    assert (found <= draw_disc(7, 15)).all()
    unsure = np.array([0.95, 0.95])
    assert disputed_regions(draw_disc(11, -10), seen, unsure, depth=3) == []


def test_the_size_of_objects_is_that_of_the_largest() -> None:
    ids = draw_disc(12, -10) | draw_disc(7, 15)
    assert object_sizes(ids, 3)[1] == draw_disc(12, -10).sum()
    assert np.isnan(object_sizes(ids, 3)[2])
