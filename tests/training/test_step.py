import copy

import pytest
import torch
from torch.nn import functional as F

from unet.models.losses import SegmentationLoss
from unet.models.unet import UNet
from unet.training.step import TrainingStep, WeightAverage

Batch = tuple[torch.Tensor, torch.Tensor]


def example(batches: int = 1) -> tuple[UNet, list[Batch]]:
    torch.manual_seed(0)
    net = UNet(in_channels=1, widths=[4, 8])
    return net, [
        (torch.randn(2, 1, 12, 20), torch.randint(0, 2, (2, 12, 20))) for _ in range(batches)
    ]


def make_step(net: UNet, lr: float = 0.1, **options: object) -> TrainingStep:
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    return TrainingStep(net, SegmentationLoss(), optimizer, **options)


def plain_loss(net: UNet, batches: list[Batch]) -> torch.Tensor:
    losses = [SegmentationLoss()(net(images), targets) for images, targets in batches]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_equals_a_plain_loop(accumulate: int) -> None:
    net, batches = example(accumulate)
    plain = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.02)
    step = make_step(net, 0.04, accumulate=accumulate)
    for _ in range(3):
        optimizer.zero_grad()
        loss = plain_loss(plain, batches)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        optimizer.step()
        numbers = step.gradients(iter(batches))
        step.update(0.5)
        assert numbers == pytest.approx((loss.item(), norm.item()), rel=1e-4)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_loss_of_an_unpadded_network_uses_the_centre_of_the_target() -> None:
    torch.manual_seed(0)
    net = UNet(in_channels=1, widths=[4, 8], norm="none", padding="valid")
    images, targets = torch.randn(2, 1, 28, 36), torch.randint(0, 2, (2, 28, 36))
    expected = SegmentationLoss()(net(images), targets[:, 8:-8, 8:-8])
    loss, _ = make_step(net).gradients(iter([(images, targets)]))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    weights = torch.zeros(2, 28, 36)
    weights[:, 8:-8, 8:-8] = torch.rand(2, 12, 20)
    expected = SegmentationLoss()(net(images), targets[:, 8:-8, 8:-8], weights[:, 8:-8, 8:-8])
    weighted, _ = make_step(net).gradients(iter([(images, targets, weights)]))
    assert weighted == pytest.approx(expected.item(), rel=1e-5)
    assert weighted != loss
    targets[:, :8] = 1 - targets[:, :8]
    assert make_step(net).gradients(iter([(images, targets)]))[0] == loss


def test_long_gradients_are_clipped_and_the_norm_is_that_before_clipping() -> None:
    net, batches = example()
    _, norm = make_step(net).gradients(batches)
    other, _ = example()
    step = make_step(other, clip_grad_norm=norm / 4)
    assert step.gradients(batches)[1] == pytest.approx(norm)
    for whole, clipped in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(whole.grad / 4, clipped.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_keeps_the_scale_of_gradients(
    dtype: torch.dtype,
) -> None:
    net, batches = example()
    seen = []
    net.head.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    _, norm = make_step(net, dtype=dtype).gradients(batches)
    assert seen == [dtype]
    other, _ = example()
    assert norm == pytest.approx(make_step(other).gradients(batches)[1], rel=0.05)


def test_float16_skips_an_update_that_is_not_finite() -> None:
    net, batches = example()
    step = make_step(net, dtype=torch.float16)
    hook = net.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(net.state_dict())
    assert step.may_skip
    step.gradients(batches)
    step.update(1.0)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    hook.remove()
    step.gradients(batches)
    step.update(1.0)
    assert not torch.equal(net.head.weight, before["head.weight"])
    assert not make_step(net).may_skip


def test_each_group_of_weights_has_its_own_learning_rate() -> None:
    net, batches = example()
    groups = [{"params": [net.head.weight]}, {"params": [net.head.bias], "lr": 0.25}]
    step = TrainingStep(net, SegmentationLoss(), torch.optim.SGD(groups, lr=0.5))
    before = copy.deepcopy(net.head)
    for factor in (1.0, 0.5):
        step.gradients(batches)
        for name, lr in (("weight", 0.5), ("bias", 0.25)):
            weights = getattr(before, name)
            weights.data -= factor * lr * getattr(net.head, name).grad
        step.update(factor)
    torch.testing.assert_close(net.head.weight, before.weight)
    torch.testing.assert_close(net.head.bias, before.bias)


def test_a_compiled_network_computes_the_same() -> None:
    net, batches = example()
    other = copy.deepcopy(net)
    loss, norm = make_step(net, compiled=True).gradients(batches)
    assert (loss, norm) == pytest.approx(make_step(other).gradients(batches), rel=1e-3)
    assert net.state_dict().keys() == other.state_dict().keys()


def test_the_average_follows_the_weights() -> None:
    net, _ = example()
    average = WeightAverage(net, decay=0.8)
    expected = net.head.weight.detach().clone()
    for step in range(60):
        with torch.no_grad():
            net.head.weight.add_(1)
            net.encoder.stem[1].num_batches_tracked.add_(1)
        average.update(net, step)
        keep = min(0.8, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * net.head.weight.detach()
        torch.testing.assert_close(average.net.head.weight, expected)
    # It lags behind by as many steps as the decay says.
    assert (net.head.weight - expected).mean().item() == pytest.approx(0.8 / 0.2, rel=1e-3)
    assert int(average.net.encoder.stem[1].num_batches_tracked) == 60
    assert not average.net.head.weight.requires_grad
    F.relu(average.net(torch.zeros(2, 1, 8, 8)))


def test_further_tensors_of_a_batch_go_to_the_loss() -> None:
    net, [(images, targets)] = example()
    border = 10 * torch.rand(targets.shape)
    with torch.no_grad():
        expected = SegmentationLoss()(copy.deepcopy(net)(images), targets, border).item()
    plain = make_step(copy.deepcopy(net)).gradients([(images, targets)])[0]
    loss, _ = make_step(net).gradients([(images, targets, border)])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss != pytest.approx(plain, rel=1e-3)
