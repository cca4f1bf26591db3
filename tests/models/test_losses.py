import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unet.models.losses import SegmentationLoss, cross_entropy, dice_loss


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = 255
    return logits, target


def slow_dice_loss(logits: np.ndarray, target: np.ndarray, weights: list[float]) -> float:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    losses, total = 0.0, 0.0
    for k, weight in enumerate(weights):
        both = sum(p[n, k, i, j] for n, i, j in np.argwhere(target == k))
        predicted = sum(p[n, k, i, j] for n, i, j in np.argwhere(target != 255))
        present = (target == k).sum()
        if present:
            losses += weight * (1 - 2 * both / (predicted + present))
            total += weight
    return losses / total


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_cross_entropy_equals_torchs(weights: list[float] | None) -> None:
    logits, target = example()
    tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, target, tensor, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, target, tensor), expected)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_dice_equals_a_slow_implementation(weights: list[float] | None) -> None:
    logits, target = example()
    tensor = None if weights is None else torch.tensor(weights)
    expected = slow_dice_loss(logits.numpy(), target.numpy(), weights or [1.0, 1.0, 1.0])
    assert float(dice_loss(logits, target, tensor)) == pytest.approx(expected, rel=1e-5)


def test_a_class_absent_from_the_target_is_left_out_of_the_mean() -> None:
    logits, target = example()
    target[target == 2] = 1
    expected = slow_dice_loss(logits.numpy(), target.numpy(), [1.0, 1.0, 1.0])
    assert float(dice_loss(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_change_nothing() -> None:
    logits, target = example()
    loss = SegmentationLoss(class_weights=[1.0, 2.0, 3.0])
    before = loss(logits, target)
    logits[0, :, :2] = torch.randn(3, 2, 5) * 100
    torch.testing.assert_close(loss(logits, target), before)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0]])
def test_a_batch_of_ignored_pixels_has_loss_0_and_no_gradient(weights: list[float] | None) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = SegmentationLoss(class_weights=weights)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_the_sum_is_weighted() -> None:
    logits, target = example()
    expected = 0.3 * cross_entropy(logits, target) + 2 * dice_loss(logits, target)
    torch.testing.assert_close(SegmentationLoss(0.3, 2.0)(logits, target), expected)


def test_a_perfect_prediction_has_almost_no_loss() -> None:
    target = torch.randint(0, 3, (1, 8, 8))
    logits = 100 * F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    assert float(SegmentationLoss()(logits, target)) < 1e-5


def test_gradients_equal_numerical_ones() -> None:
    target = torch.tensor([[[0, 1], [2, 255]]])
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float32, requires_grad=True)
    loss = SegmentationLoss()
    loss(logits, target).backward()
    i = (0, 1, 0, 1)
    step = torch.zeros_like(logits)
    step[i] = 1e-2
    with torch.no_grad():
        slope = (loss(logits + step, target) - loss(logits - step, target)) / 2e-2
    assert float(logits.grad[i]) == pytest.approx(float(slope), abs=1e-3)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_border_weights_are_added_to_class_weights(weights: list[float] | None) -> None:
    logits, target = example()
    tensor = None if weights is None else torch.tensor(weights)
    border = 10 * torch.rand(target.shape)
    total, weight = 0.0, 0.0
    for n, i, j in np.argwhere(target.numpy() != 255):
        k = int(target[n, i, j])
        w = float(border[n, i, j]) + (1.0 if weights is None else weights[k])
        total -= w * float(logits[n, :, i, j].log_softmax(0)[k])
        weight += w
    loss = cross_entropy(logits, target, tensor, border_weights=border)
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)
    both = SegmentationLoss(0.5, 2.0, weights)(logits, target, border)
    torch.testing.assert_close(both, 0.5 * loss + 2 * dice_loss(logits, target, tensor))


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_border_weights_change_nothing(constant: float) -> None:
    logits, target = example()
    border = torch.full(target.shape, constant)
    torch.testing.assert_close(
        cross_entropy(logits, target, border_weights=border), cross_entropy(logits, target)
    )


def test_ignored_pixels_do_not_count_whatever_their_weight() -> None:
    logits, target = example()
    border = torch.rand(target.shape)
    before = cross_entropy(logits, target, border_weights=border)
    border[0, :2] = 1e6
    torch.testing.assert_close(cross_entropy(logits, target, border_weights=border), before)
    nowhere = torch.full((2, 4, 5), 255)
    assert float(cross_entropy(logits, nowhere, border_weights=border)) == 0
