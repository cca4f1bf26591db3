import pytest
import torch
from torch.nn import functional as F

from unet.side_by_side import _lay_at_once, _parts, _rows, lay_side_by_side


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_what_is_laid_in_several_parts_equals_torch(n: int, with_bias: bool) -> None:
    torch.manual_seed(n)
    x = torch.randn(2, 16, 96, 130).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(16, 12, n, n) / 4, torch.randn(12) if with_bias else None
    assert len(_parts(_rows(x), weight)) > 1
    results = []
    for function in (lay_side_by_side, torchs):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        if bias is not None:
            leaves.append(bias.clone().requires_grad_())
        output = function(*leaves)
        torch.manual_seed(9)
        results.append([output, *torch.autograd.grad(output, leaves, torch.randn_like(output))])
    for mine, other in zip(*results, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * scale)


def torchs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.conv_transpose2d(x, weight, bias, stride=weight.shape[2])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_by_rows_equals_at_once(kernel: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 5, 6).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(4, 3, *kernel).to(dtype), torch.randn(3).to(dtype)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    by_rows, at_once = lay_side_by_side(x, weight, bias), _lay_at_once(x, weight, bias)
    assert by_rows.stride() == at_once.stride()
    torch.testing.assert_close(by_rows, at_once, rtol=tolerance, atol=tolerance)


def test_parts_cover_every_row_once() -> None:
    weight = torch.zeros(8, 16, 2, 2)
    for height in (1, 7, 100, 1000):
        rows = _rows(torch.zeros(2, 8, height, 300).to(memory_format=torch.channels_last))
        covered = [i for part in _parts(rows, weight) for i in range(2 * height)[part]]
        assert covered == list(range(2 * height))


def test_second_derivatives_by_rows() -> None:
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    leaves = (x, torch.randn(2, 2, 2, 2).double(), torch.randn(2).double())
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    assert torch.autograd.gradgradcheck(lay_side_by_side, leaves)
