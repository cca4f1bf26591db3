import pytest
import torch
from torch import Tensor, nn

from unet.models.group_norm import GroupNorm


def run(norm: nn.GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(grad)
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return [y.detach(), x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [8, 24, 64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_group_norm_and_its_gradients_are_as_close_to_the_exact_ones_as_torchs(
    dtype: torch.dtype, channels: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    torchs, exact = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels).double()
    nn.init.normal_(torchs.weight)
    nn.init.normal_(torchs.bias)
    ours = GroupNorm(8, channels)
    for norm in (ours, exact):
        norm.load_state_dict(torchs.state_dict())
    x = torch.randn(2, channels, 12, 10).add_(1).to(dtype).to(memory_format=memory_format)
    grad = torch.randn_like(x)
    expected = run(exact, x.double(), grad.double())
    for one, other, wanted in zip(run(ours, x, grad), run(torchs, x, grad), expected, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        scale = float(wanted.abs().max())
        error, torchs_error = ((wanted - e).abs().max() / scale for e in (one, other))
        rounding = torch.finfo(one.dtype).eps
        assert error <= torchs_error + rounding


def test_group_norm_can_be_traced() -> None:
    norm, x = GroupNorm(2, 4), torch.randn(1, 4, 3, 5)
    traced = torch.fx.symbolic_trace(nn.Sequential(norm))
    assert torch.equal(traced(x), norm(x))
