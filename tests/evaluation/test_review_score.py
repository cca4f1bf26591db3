import numpy as np
import pytest
import torch
from scipy import ndimage

from unet.data.pairing import Pair
from unet.evaluation.folds import Predicted
from unet.evaluation.review_score import SUSPECT, Verdict, collect_evidence, estimate_noise, judge

NAMES = ("background", "cell", "nucleus")


def draw_cells(seed: int) -> np.ndarray:
    """Class ids of cells with nuclei, (96, 110)."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((96, 110), np.uint8)
    y, x = np.ogrid[:96, :110]
    for i in range(6):
        cy, cx = 16 + 32 * (i // 2) + rng.uniform(-4, 4), 28 + 54 * (i % 2) + rng.uniform(-16, 16)
        ids[np.hypot(y - cy, x - cx) <= rng.uniform(8, 12)] = 1
        ids[np.hypot(y - cy, x - cx) <= 4] = 2
    return ids


def predict(ids: np.ndarray, seed: int) -> torch.Tensor:
    """Logits (K, H, W) of a model that is unsure near boundaries."""
    rng = np.random.default_rng(seed)
    one_hot = np.stack([ids == i for i in range(3)]).astype(float)
    p = ndimage.gaussian_filter(one_hot, (0, 1.2, 1.2)) + 0.03
    return torch.from_numpy(np.log(p) + rng.normal(0, 0.2, p.shape))


def review(masks: dict[int, np.ndarray], count: int = 20, empty: int = 0) -> list[Verdict]:
    """Judge masks, some of them replaced; so many more images have no cells."""
    images = []
    for i in range(count + empty):
        truth = draw_cells(i) if i < count else np.zeros((96, 110), np.uint8)
        image = torch.zeros(1, *truth.shape)
        pair = Pair(str(i), (f"{i}.png",), (f"{i}.png",))
        images.append(Predicted.of(pair, image, predict(truth, i), masks.get(i, truth)))
    evidence = collect_evidence(images, estimate_noise(images))
    return judge(evidence, NAMES, [str(i) for i in range(count + empty)])


def without_a_cell(ids: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(ids)
    return np.where(labels == 2, 0, ids).astype(np.uint8)


def with_nuclei_as_cells(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 2, 1, ids).astype(np.uint8)


def widened(ids: np.ndarray) -> np.ndarray:
    grown = ndimage.distance_transform_edt(ids == 0) <= 2
    return np.where(grown & (ids == 0), 1, ids).astype(np.uint8)


def test_wrong_masks_come_first_and_the_reason_is_right() -> None:
    masks = {
        3: np.roll(draw_cells(3), (4, -3), (0, 1)),
        7: widened(draw_cells(7)),
        11: draw_cells(12),
        15: without_a_cell(draw_cells(15)),
    }
    verdicts = review(masks)
    order = sorted(range(len(verdicts)), key=lambda i: -verdicts[i].score)
    assert set(order[:4]) == set(masks)
    assert all((one.score >= SUSPECT) == (i in masks) for i, one in enumerate(verdicts))
    assert verdicts[3].reason == "shifted by (4, -3)"
    assert verdicts[3].shift == (4, -3)
    assert verdicts[7].reason == "cell: wider by 2"
    assert verdicts[11].reason == "mask of another image, such as 12"
    assert verdicts[15].reason.startswith("object missing: cell, ")
    assert verdicts[15].of_regions
    assert not verdicts[3].of_regions


def test_a_class_for_another_is_named() -> None:
    verdict = review({5: with_nuclei_as_cells(draw_cells(5))})[5]
    assert verdict.score >= SUSPECT
    assert verdict.reason.startswith("cell for nucleus, ")


def test_what_all_masks_have_is_not_disputed() -> None:
    verdicts = review({i: np.roll(draw_cells(i), 3, 0) for i in range(20)})
    assert all(verdict.score < SUSPECT for verdict in verdicts)


def test_right_masks_are_not_disputed() -> None:
    assert all(verdict.score < SUSPECT for verdict in review({}))


def test_masks_without_objects_can_be_judged() -> None:
    empty = np.zeros((96, 110), np.uint8)
    verdicts = review({0: empty, 1: np.full((96, 110), 255, np.uint8)}, count=2)
    assert all(np.isfinite(verdict.score) for verdict in verdicts)


def test_images_without_objects_do_not_change_what_is_common() -> None:
    moved = {3: np.roll(draw_cells(3), (4, -3), (0, 1))}
    verdicts = review(moved, count=12, empty=30)
    assert [i for i, one in enumerate(verdicts) if one.score >= SUSPECT] == [3]
    assert verdicts[3].reason == "shifted by (4, -3)"
    assert {(one.reason, one.shift) for one in verdicts[12:]} == {("", (0, 0))}


def test_objects_of_an_empty_mask_are_missing() -> None:
    empty = np.zeros((96, 110), np.uint8)
    verdicts = review({4: empty})
    assert max(verdicts, key=lambda one: one.score) is verdicts[4]
    assert verdicts[4].score >= SUSPECT
    assert verdicts[4].reason.startswith("object missing: ")


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_probabilities_are_calibrated(temperature: float) -> None:
    images = []
    for i in range(4):
        rng = np.random.default_rng(i)
        logits = torch.from_numpy(rng.normal(0, 2, (3, 96, 110)))
        p = logits.softmax(0).numpy()
        target = (rng.random((96, 110)) > p.cumsum(0)[:2, ...]).sum(0).astype(np.uint8)
        pair = Pair(str(i), (f"{i}.png",), (f"{i}.png",))
        images.append(Predicted.of(pair, torch.zeros(1, 96, 110), logits / temperature, target))
    assert estimate_noise(images).temperature == pytest.approx(1 / temperature, rel=0.2)
