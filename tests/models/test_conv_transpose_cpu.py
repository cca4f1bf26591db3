from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.models import conv_transpose_cpu
from unet.models.conv_transpose_cpu import (
    non_overlapping_by_permutation,
    non_overlapping_by_product,
    non_overlapping_by_row,
    non_overlapping_conv_transpose2d,
)

FUNCTIONS = [non_overlapping_by_permutation, non_overlapping_by_row, non_overlapping_by_product]
Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def draw(
    *size: int, kernel: tuple[int, int], out_channels: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """A channels_last input of `size`, a weight and a bias."""
    torch.manual_seed(0)
    x = torch.randn(*size).to(dtype).to(memory_format=torch.channels_last)
    return x, torch.randn(size[1], out_channels, *kernel).to(dtype), torch.randn(3).to(dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_function_equals_torch_forward_and_backward(
    function: Function, kernel: tuple[int, int], with_bias: bool, dtype: torch.dtype
) -> None:
    x, weight, bias = draw(2, 4, 5, 6, kernel=kernel, dtype=dtype)
    results = []
    for one in (function, torchs):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias)[: 2 + with_bias]]
        output = one(*leaves, *[None][with_bias:])
        torch.manual_seed(9)
        results.append([output, *torch.autograd.grad(output, leaves, torch.randn_like(output))])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for mine, other in zip(*results, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * scale)
    assert results[0][0].is_contiguous(memory_format=torch.channels_last)


def torchs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, stride=tuple(weight.shape[2:]))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_product_without_gradients_equals_torchs(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight, bias = draw(2, 40, 3, 5, kernel=(2, 3), dtype=dtype)
    arguments = x, weight, bias if with_bias else None
    with torch.inference_mode():
        mine = non_overlapping_by_product(*arguments)
    exact = torchs(*(None if one is None else one.double() for one in arguments))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=tolerance)
    assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("reason", ["missing", "switched off", "traced"])
def test_the_product_does_without_what_torch_keeps_private(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = draw(2, 40, 3, 5, kernel=(2, 3))
    if reason == "missing":  # as in a build or version of torch without it
        monkeypatch.setattr(torch.ops, "mkldnn", type("Namespace", (), {})())
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", reason != "switched off")
    function: Function = non_overlapping_by_product
    with torch.inference_mode():
        if reason == "traced":
            function = torch.jit.trace(function, arguments)
            assert "mkldnn" not in str(function.graph)  # other software cannot run it
        torch.testing.assert_close(function(*arguments), torchs(*arguments))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_derivatives_of_every_function(function: Function) -> None:
    leaves = draw(1, 2, 2, 3, kernel=(2, 2), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(function, tuple(leaf.requires_grad_() for leaf in leaves))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap_and_forward_mode_of_every_function(function: Function) -> None:
    leaves = draw(3, 2, 4, 5, kernel=(2, 2), dtype=torch.float64)
    inputs = leaves[0].unsqueeze(1)
    mapped = torch.vmap(function, in_dims=(0, None, None))(inputs, *leaves[1:])
    torch.testing.assert_close(mapped.squeeze(1), torchs(*leaves))
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    _, derivative = torch.func.jvp(function, leaves, tangents)
    step = 1e-6
    moved = [leaf + step * tangent for leaf, tangent in zip(leaves, tangents, strict=True)]
    expected = (torchs(*moved) - torchs(*leaves)) / step
    torch.testing.assert_close(derivative, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_in_a_pixel_stays_in_its_block(function: Function) -> None:
    x, weight, bias = draw(1, 2, 3, 3, kernel=(2, 2))
    x[0, 1, 1, 2] = torch.nan
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(function(x, weight, bias).isnan().all(1)[0], expected)
    assert torch.equal(function(x, weight, bias).isnan().any(1)[0], expected)


@pytest.mark.parametrize(
    ("size", "function"),
    [
        ((1, 16, 3, 4), "non_overlapping_by_product"),
        ((2, 16, 3, 4), "non_overlapping_by_product"),
        ((2, 4, 3, 7), "non_overlapping_by_row"),
        ((0, 4, 3, 7), "non_overlapping_by_permutation"),
    ],
)
def test_the_function_is_chosen_by_pixels_and_channels(
    size: tuple[int, ...], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def spy(name: str) -> Function:
        function: Function = getattr(conv_transpose_cpu, name)

        def run(*args: Tensor) -> Tensor:
            taken.append(name)
            return function(*args)

        return run

    for name in (
        "non_overlapping_by_product",
        "non_overlapping_by_permutation",
        "non_overlapping_by_row",
    ):
        monkeypatch.setattr(conv_transpose_cpu, name, spy(name))
    x, weight, bias = draw(*size, kernel=(2, 2))
    non_overlapping_conv_transpose2d(x, weight, bias)
    assert taken == [function]
