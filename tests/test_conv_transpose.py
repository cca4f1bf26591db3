import itertools

import pytest
import torch
from torch import nn

from unet import ConvTranspose2d, conv_transpose2d


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch_forward_and_backward(n: int, bias: bool) -> None:
    ours = ConvTranspose2d(3, 5, n, stride=n, bias=bias).double()
    theirs = nn.ConvTranspose2d(3, 5, n, stride=n, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = ours(x1), theirs(x2)
    torch.testing.assert_close(y1, y2, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(y1)
    (y1 * weight).sum().backward()
    (y2 * weight).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-12, atol=1e-12)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_block_is_bitwise_the_kernel_times_the_pixel(n: int) -> None:
    x, weight = torch.randn(1, 1, 3, 4), torch.randn(1, 1, n, n)
    y = conv_transpose2d(x, weight)
    assert y.shape == (1, 1, 3 * n, 4 * n)
    for i, j in itertools.product(range(3), range(4)):
        block = y[0, 0, n * i : n * (i + 1), n * j : n * (j + 1)]
        assert torch.equal(block, weight[0, 0] * x[0, 0, i, j])


def test_parameters_are_drawn_as_torch_draws_them() -> None:
    torch.manual_seed(5)
    ours = ConvTranspose2d(6, 4, 3, stride=3)
    torch.manual_seed(5)
    theirs = nn.ConvTranspose2d(6, 4, 3, stride=3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_state_dicts_go_both_ways() -> None:
    ours, theirs = ConvTranspose2d(6, 4, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ConvTranspose2d(6, 4, 2, stride=2).state_dict())


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    y = ConvTranspose2d(8, 4, 2, stride=2)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_stride_other_than_the_kernel_size_is_refused() -> None:
    with pytest.raises(ValueError, match="got stride 1 and kernel_size 2"):
        ConvTranspose2d(3, 3, 2, stride=1)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got input of shape \(1, 2, 4, 4\), expected \(N, 3,"):
        ConvTranspose2d(3, 3, 2, stride=2)(torch.zeros(1, 2, 4, 4))
