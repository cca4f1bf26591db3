import doctest
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import unet.models.conv_transpose
from unet import ConvTranspose2d, conv_transpose2d
from unet.models.conv_transpose import kernel_times_pixel, lay_blocks

NAMES = ("kernel", "stride", "padding", "output_padding", "groups", "dilation")
GRID = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(
        [(1, 1), (2, 2), (3, 3), (3, 2)],
        [1, 2, 3, (2, 3)],
        [0, 1, (0, 1)],
        [0, 1, 2],
        [1, 2],
        [1, 2],
    )
]


def fits(case: dict[str, Any]) -> bool:
    """Whether torch accepts the case."""
    stride, dilation = (
        (v, v) if isinstance(v := case[name], int) else v for name in ("stride", "dilation")
    )
    return all(case["output_padding"] < max(s, d) for s, d in zip(stride, dilation, strict=True))


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name != "kernel"}


def tensors(
    case: dict[str, Any], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input (2, 4, 5, 6), weight for 6 output channels, and bias."""
    torch.manual_seed(0)
    groups = case["groups"]
    shapes = ((2, 4, 5, 6), (4, 6 // groups, *case["kernel"]), (6,))
    x, weight, bias = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def with_gradients(
    function: Any, case: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Tensor]:
    leaves = tensors(case, dtype)
    x = leaves[0].to(memory_format=memory_format)
    output = function(x, *leaves[1:], **arguments(case))
    torch.manual_seed(1)
    return [output, *torch.autograd.grad(output, leaves, torch.randn_like(output))]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "step"),
    [
        (torch.float64, 1e-12, 1),
        # Every fifth case contains every value of every argument.
        (torch.float32, 2e-5, 5),
        # Both round every product and sum to 8 bits, in different orders.
        (torch.bfloat16, 5e-2, 5),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_equals_torch_over_the_grid_forward_and_every_gradient(
    dtype: torch.dtype, tolerance: float, step: int, memory_format: torch.memory_format
) -> None:
    cases = [case for case in GRID if fits(case)][::step]
    assert len(cases) > 300 / step
    for name in NAMES:
        assert {case[name] for case in cases} == {case[name] for case in GRID}
    for case in cases:
        ours = with_gradients(conv_transpose2d, case, dtype, memory_format)
        theirs = with_gradients(F.conv_transpose2d, case, dtype, memory_format)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == other.dtype
            assert mine.shape == other.shape
            scale = max(1.0, float(other.detach().abs().max()))
            assert float((mine - other).detach().abs().max()) <= tolerance * scale, case


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.complex64, torch.complex128, torch.complex32, torch.int64]
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_that_torch_takes(dtype: torch.dtype) -> None:
    for kernel, stride in ((2, 2), (3, 2)):
        torch.manual_seed(0)
        shapes = ((2, 4, 5, 6), (4, 3, kernel, kernel), (3,))
        if dtype == torch.int64:
            x, weight, bias = (torch.randint(-(2**40), 2**40, shape) for shape in shapes)
        else:
            x, weight, bias = (torch.randn(shape, dtype=torch.complex128) for shape in shapes)
            x, weight, bias = (
                (t if dtype.is_complex else t.real).to(dtype) for t in (x, weight, bias)
            )
        ours = conv_transpose2d(x, weight, bias, stride)
        theirs = F.conv_transpose2d(x, weight, bias, stride)
        assert ours.dtype == theirs.dtype == dtype
        if dtype == torch.int64:  # products beyond 64 bits wrap around in both
            assert torch.equal(ours, theirs)
        else:
            half = dtype in (torch.float16, torch.complex32)
            mine, other = (t.to(torch.complex128) for t in (ours, theirs))
            torch.testing.assert_close(mine, other, rtol=0, atol=0.05 if half else 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_dtypes_behave_as_in_torch(stride: int) -> None:
    x, weight, bias = torch.randn(1, 2, 3, 3), torch.randn(2, 3, 2, 2), torch.randn(3).double()
    for function in (conv_transpose2d, F.conv_transpose2d):
        with pytest.raises(RuntimeError, match="type"):
            function(x, weight.double(), stride=stride)
    ours, theirs = (f(x, weight, bias, stride) for f in (conv_transpose2d, F.conv_transpose2d))
    torch.testing.assert_close(ours, theirs)


def test_numpy_integers_are_accepted() -> None:
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 3, 2, 2)
    expected = conv_transpose2d(x, weight, stride=2)
    assert torch.equal(conv_transpose2d(x, weight, stride=np.int64(2)), expected)
    assert torch.equal(conv_transpose2d(x, weight, stride=torch.Size([2, 2])), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
def test_the_batch_can_be_missing_or_empty(kernel: int, stride: int) -> None:
    x, weight, bias = torch.randn(4, 5, 6), torch.randn(4, 3, kernel, kernel), torch.randn(3)
    ours = conv_transpose2d(x, weight, bias, stride)
    torch.testing.assert_close(ours, F.conv_transpose2d(x, weight, bias, stride))
    empty = torch.zeros(0, 4, 5, 6, requires_grad=True)
    ours = conv_transpose2d(empty, weight, bias, stride)
    assert ours.shape == F.conv_transpose2d(empty, weight, bias, stride).shape
    ours.sum().backward()
    assert empty.grad is not None


@pytest.mark.parametrize(
    ("size", "kernel", "settings"),
    [
        ((1, 1), 2, {"padding": 1}),
        ((1, 1), 2, {"padding": 1, "stride": 2}),
        ((0, 0), 2, {"stride": 2}),
        ((0, 4), 3, {"stride": 2, "output_padding": 1}),
        ((0, 4), 2, {}),
    ],
)
def test_outputs_of_an_empty_batch_are_torchs(
    size: tuple[int, int], kernel: int, settings: dict[str, Any]
) -> None:
    weight = torch.randn(2, 3, kernel, kernel, requires_grad=True)
    x = torch.randn(0, 2, *size, requires_grad=True)
    ours, theirs = (f(x, weight, **settings) for f in (conv_transpose2d, F.conv_transpose2d))
    assert ours.shape == theirs.shape
    for gradient in torch.autograd.grad(ours.sum(), (x, weight)):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_further_from_the_exact_result_than_torchs(dtype: torch.dtype) -> None:
    """But for one rounding: overlapping blocks are summed in float32."""
    cases = [case for case in GRID if fits(case)][::3]
    for case in cases:
        x, weight, bias = (one.detach().to(dtype) for one in tensors(case))
        exact = F.conv_transpose2d(x.double(), weight.double(), bias.double(), **arguments(case))
        rounding = torch.finfo(dtype).eps / 2 * float(exact.abs().max())
        ours, theirs = (
            float((f(x, weight, bias, **arguments(case)).double() - exact).abs().max())
            for f in (conv_transpose2d, F.conv_transpose2d)
        )
        assert ours <= theirs + rounding, case
        stride = (s, s) if isinstance(s := case["stride"], int) else s
        if stride != tuple(case["kernel"]) or case["dilation"] not in (1, (1, 1)):
            assert ours <= 1.01 * rounding, case


@pytest.mark.parametrize("case", GRID[::37], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradcheck_and_gradgradcheck(
    case: dict[str, Any], memory_format: torch.memory_format
) -> None:
    if not fits(case):
        case = {**case, "output_padding": 0}
    x, weight, bias = tensors(case)
    leaves = (x.detach()[:1, :, :3, :2].clone().requires_grad_(), weight, bias)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv_transpose2d(x.to(memory_format=memory_format), weight, bias, **arguments(case))

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(
    "case", [case for case in GRID if not case["output_padding"]][::5], ids=str
)
def test_it_is_the_adjoint_of_the_convolution(case: dict[str, Any]) -> None:
    """<conv(x), y> = <x, conv_transpose(y)>, for x of the size that y's transpose has."""
    y, weight, _ = (t.detach() for t in tensors(case))
    transposed = conv_transpose2d(y, weight, **arguments(case))
    x = torch.randn_like(transposed)
    settings = {k: v for k, v in arguments(case).items() if k != "output_padding"}
    convolved = F.conv2d(x, weight, **settings)
    assert convolved.shape == y.shape
    torch.testing.assert_close((convolved * y).sum(), (x * transposed).sum(), rtol=1e-9, atol=1e-9)


def size_of(pixels: int, **settings: int) -> int:
    kernel = settings.pop("kernel")
    return conv_transpose2d(
        torch.zeros(1, 1, pixels, 2 * pixels), torch.zeros(1, 1, kernel, kernel), **settings
    ).shape[2]


@pytest.mark.parametrize("i", [3, 4, 7])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_output_sizes_are_those_of_dumoulin_and_visin(i: int, k: int) -> None:
    """Chapter 4 of arXiv 1603.07285, relationship by relationship."""
    assert size_of(i, kernel=k) == i + (k - 1)  # 8: no padding, unit strides
    for p in range((k + i - 2) // 2):
        assert size_of(i, kernel=k, padding=p) == i + (k - 1) - 2 * p  # 9: padding, unit strides
    if k % 2:
        assert size_of(i, kernel=k, padding=k // 2) == i  # 10: half padding
    if i > k - 1:
        assert size_of(i, kernel=k, padding=k - 1) == i - (k - 1)  # 11: full padding
    for s in (2, 3):
        assert size_of(i, kernel=k, stride=s) == s * (i - 1) + k  # 12: no padding, strides
        for p in range(k // 2 + 1):
            expected = s * (i - 1) + k - 2 * p
            assert size_of(i, kernel=k, stride=s, padding=p) == expected  # 13: padding, strides
            for a in range(s):  # 14: as 13, for inputs that strides do not divide
                padded = size_of(i, kernel=k, stride=s, padding=p, output_padding=a)
                assert padded == expected + a


# The article.


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_block_is_bitwise_the_kernel_times_the_pixel(n: int) -> None:
    torch.manual_seed(n)
    x, weight = torch.randn(1, 1, 3, 4), torch.randn(1, 1, n, n)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = conv_transpose2d(x.to(memory_format=memory_format), weight, stride=n)
        assert y.shape == (1, 1, 3 * n, 4 * n)
        for i, j in itertools.product(range(3), range(4)):
            block = y[0, 0, n * i : n * (i + 1), n * j : n * (j + 1)]
            assert torch.equal(block, weight[0, 0] * x[0, 0, i, j])
    assert torch.equal(y[0, 0], lay_blocks(kernel_times_pixel(x[0, 0], weight[0, 0]), stride=n))


def test_the_articles_apl_example_to_the_printed_digits() -> None:
    kernel = torch.tensor([[0.3459, -0.2987], [-0.9396, -0.01321]], dtype=torch.float64)
    pixels = torch.tensor(
        [[0.9064, 0.4639, 0.3109], [0.3791, 0.2148, 0.07558]], dtype=torch.float64
    )
    boxes = """
      0.3135292152 -0.2707504069     0.1604726599 -0.1385773187     0.1075419518 -0.09286862532
     -0.8516202838 -0.01196955272   -0.4358820981 -0.006126338057  -0.2921096442 -0.004105611215
      0.1311479097 -0.1132537199     0.07430170451 -0.0641637709    0.02614514593 -0.02257782866
     -0.3562290678 -0.005006811944  -0.201821188 -0.00283660382    -0.07101646521 -0.0009981388897
    """
    joined = """
         0.3135 -0.2708    0.1605 -0.1386    0.1075 -0.09287
        -0.8516 -0.01197  -0.4359 -0.006126 -0.2921 -0.004106
         0.1311 -0.1133    0.0743 -0.06416   0.02615 -0.02258
        -0.3562 -0.005007 -0.2018 -0.002837 -0.07102 -0.0009981
    """
    blocks = kernel_times_pixel(pixels, kernel)
    assert blocks.shape == (2, 3, 2, 2)
    image = conv_transpose2d(pixels[None, None], kernel[None, None], stride=2)[0, 0]
    assert torch.equal(lay_blocks(blocks, stride=2), image)
    for printed in (boxes, joined):
        rows = [line.split() for line in printed.strip().splitlines()]
        for i, j in itertools.product(range(4), range(6)):
            pixel, weight = pixels[i // 2, j // 2], kernel[i % 2, j % 2]
            value, shown = blocks[i // 2, j // 2, i % 2, j % 2], float(rows[i][j])
            # The article rounded its numbers to print them, and multiplied them as they were.
            rounding = abs(pixel) * half_a_digit(weight) + abs(weight) * half_a_digit(pixel)
            assert abs(value - shown) <= rounding + half_a_digit(shown)


def half_a_digit(number: Tensor | float) -> float:
    """Half a unit in the fourth significant digit, the last that APL printed."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(float(number)))) - 3)


def test_the_reverse_step_halves_the_image() -> None:
    image = torch.randn(1, 1, 6, 8)
    assert F.conv2d(image, torch.randn(1, 1, 2, 2), stride=2).shape == (1, 1, 3, 4)


@pytest.mark.parametrize(("kernel", "stride"), [((2, 3), 1), ((3, 3), 2), ((2, 2), 3)])
def test_the_readable_reference_agrees_where_blocks_overlap(
    kernel: tuple[int, int], stride: int
) -> None:
    x, weight = torch.randn(4, 5, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    expected = lay_blocks(kernel_times_pixel(x, weight), stride)
    ours = conv_transpose2d(x[None, None], weight[None, None], stride=stride)
    torch.testing.assert_close(ours[0, 0], expected, rtol=0, atol=1e-12)


def test_the_examples_in_the_docstring_run() -> None:
    result = doctest.testmod(unet.models.conv_transpose)
    assert result.attempted >= 8
    assert result.failed == 0


# The layer.

LAYERS = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": (3, 2), "stride": (3, 2), "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 2, "groups": 2, "dilation": 2},
]


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_the_layer_equals_torchs_including_initial_parameters(settings: dict[str, Any]) -> None:
    torch.manual_seed(5)
    ours = ConvTranspose2d(6, 4, **settings)
    torch.manual_seed(5)
    theirs = nn.ConvTranspose2d(6, 4, **settings)
    assert repr(ours) == repr(theirs)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_state_dicts_can_be_exchanged_with_torchs_layer(settings: dict[str, Any]) -> None:
    ours, theirs = ConvTranspose2d(6, 4, **settings), nn.ConvTranspose2d(6, 4, **settings)
    x = torch.randn(2, 6, 5, 7)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ours = ConvTranspose2d(6, 4, **settings)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


def test_device_and_dtype_can_be_chosen() -> None:
    layer = ConvTranspose2d(2, 3, 2, stride=2, dtype=torch.float64, device="meta")
    assert layer.weight.dtype == torch.float64
    assert layer.weight.is_meta
    assert layer(torch.zeros(1, 2, 4, 4, dtype=torch.float64, device="meta")).shape == (1, 3, 8, 8)


def test_output_size_chooses_the_output_padding() -> None:
    ours = ConvTranspose2d(2, 3, 3, stride=(2, 3), padding=1)
    theirs = nn.ConvTranspose2d(2, 3, 3, stride=(2, 3), padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 4, 5)
    for size in itertools.product((7, 8), (13, 14, 15)):
        out = ours(x, output_size=size)
        assert out.shape[2:] == size
        torch.testing.assert_close(out, theirs(x, output_size=size))
        assert torch.equal(ours(x, output_size=(1, 3, *size)), out)
    for size in ((6, 13), (9, 13), (7, 16)):
        with pytest.raises(ValueError, match=r"expected from \(7, 13\) to \(8, 15\)"):
            ours(x, output_size=size)


# Other features of torch.


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_the_memory_format_is_kept(settings: dict[str, Any]) -> None:
    layer, x = ConvTranspose2d(6, 4, **settings), torch.randn(2, 6, 5, 7)
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(last, layer(x))


@pytest.mark.parametrize("settings", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_dtype_as_torchs_layer(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    ours, theirs = ConvTranspose2d(6, 4, **settings), nn.ConvTranspose2d(6, 4, **settings)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 7)
    with torch.autocast("cpu", dtype):
        mine, other = ours(x), theirs(x)
    assert mine.dtype == other.dtype == dtype
    torch.testing.assert_close(mine, other, atol=0.02, rtol=0.02)
    mine.sum().backward()
    assert ours.weight.grad.dtype == torch.float32


def random_input(channels_last: bool, *shape: int) -> Tensor:
    """Random float64 (..., 6, 5, 7), with or without adjacent channels in memory."""
    if channels_last:
        return torch.randn(*shape, 5, 7, 6, dtype=torch.float64).movedim(-1, -3)
    return torch.randn(*shape, 6, 5, 7, dtype=torch.float64)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_vmap_over_input_and_over_weight(settings: dict[str, Any], channels_last: bool) -> None:
    layer = ConvTranspose2d(6, 4, **settings).double().requires_grad_(False)
    x = random_input(channels_last, 3, 2)
    expected = torch.stack([layer(one) for one in x])
    torch.testing.assert_close(torch.vmap(layer)(x), expected)
    weights = torch.randn(3, *layer.weight.shape, dtype=torch.float64)

    def with_weight(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x[0],))

    expected = torch.stack([with_weight(weight) for weight in weights])
    torch.testing.assert_close(torch.vmap(with_weight)(weights), expected)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_forward_mode_derivatives_and_hessian_vector_products(
    settings: dict[str, Any], channels_last: bool
) -> None:
    layer = ConvTranspose2d(6, 4, **settings).double().requires_grad_(False)
    x, direction = random_input(channels_last, 2), random_input(channels_last, 2)
    _, derivative = torch.func.jvp(layer, (x,), (direction,))
    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    torch.testing.assert_close(derivative, layer(direction) - bias)  # it is linear
    parameters = {name: torch.randn_like(value) for name, value in layer.named_parameters()}

    def with_parameters(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, values, (x,))

    _, derivative = torch.func.jvp(
        with_parameters, (dict(layer.named_parameters()),), (parameters,)
    )
    torch.testing.assert_close(
        derivative, with_parameters(parameters)
    )  # linear in the parameters, too

    def loss(x: Tensor) -> Tensor:
        return layer(x).pow(4).sum()

    product = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    step = 1e-5 * direction
    slope = (torch.func.grad(loss)(x + step) - torch.func.grad(loss)(x - step)) / 2e-5
    torch.testing.assert_close(product, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_compiles_as_one_graph(settings: dict[str, Any]) -> None:
    torch.compiler.reset()
    layer = ConvTranspose2d(6, 4, **settings)
    # aot_eager traces forward and backward as inductor does, and needs no C++ compiler.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    (mine,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (other,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_fx_traces_a_network_that_holds_it(settings: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), ConvTranspose2d(6, 4, **settings), nn.ReLU())
    traced = fx.symbolic_trace(net)
    for shape in ((2, 3, 7, 9), (1, 3, 5, 5)):
        x = torch.randn(shape)
        assert torch.equal(traced(x), net(x))


def test_fx_traces_an_output_size() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = ConvTranspose2d(6, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, [10, 11])

    up, x = Up(), torch.randn(1, 6, 4, 5)
    assert torch.equal(fx.symbolic_trace(up)(x), up(x))


@pytest.mark.parametrize(
    "spectral_norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_spectral_norm_of_dim_1_does_as_that_of_torchs_layer(
    spectral_norm: Callable[..., nn.Module],
) -> None:
    layers = []
    for kind, dim in ((ConvTranspose2d, {"dim": 1}), (nn.ConvTranspose2d, {})):
        torch.manual_seed(0)
        layers.append(spectral_norm(kind(6, 4, 3, stride=2), **dim))
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=0, atol=0)
    x = torch.randn(1, 6, 5, 7)
    torch.testing.assert_close(layers[0](x), layers[1](x))


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_exports_with_dynamic_batch_and_size(settings: dict[str, Any]) -> None:
    layer = ConvTranspose2d(6, 4, **settings).eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        layer, (torch.randn(2, 6, 5, 7),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    for shape in ((2, 6, 5, 7), (3, 6, 8, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("settings", LAYERS, ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnxruntime_agrees(settings: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs unet[onnx]")
    pytest.importorskip("onnxscript", reason="needs unet[onnx]")
    layer = ConvTranspose2d(6, 4, **settings).eval()
    file, x = io.BytesIO(), torch.randn(2, 6, 5, 7)
    torch.onnx.export(layer, (x,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(result, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", LAYERS, ids=str)
def test_results_repeat_in_deterministic_mode(settings: dict[str, Any]) -> None:
    layer, x = ConvTranspose2d(6, 4, **settings), torch.randn(2, 6, 5, 7, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        results = [torch.autograd.grad(layer(x).square().sum(), x)[0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Wrong arguments.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_padding": 2, "stride": 2}, r"got output_padding \(2, 2\) with stride \(2, 2\)"),
        ({"output_padding": (0, 1)}, "expected less than 1 in width"),
        ({"padding": 3}, "for height 4, which leaves an output height of -1, expected at least 1"),
        ({"stride": 0}, "got stride 0, expected a number or a pair, at least 1"),
        ({"stride": (1, 2, 3)}, r"got stride \(1, 2, 3\), expected a number or a pair"),
        ({"padding": -1}, "got padding -1, expected"),
        ({"dilation": (1, 0)}, r"got dilation \(1, 0\), expected"),
        ({"groups": 3}, "and groups 3, expected groups that divide the 2 input channels"),
        ({"groups": 0}, "and groups 0, expected groups that divide"),
        ({"bias": torch.zeros(4)}, r"bias \(4,\) and groups 1, expected bias \(3,\)"),
        (
            {"input": torch.zeros(1, 3, 4, 4)},
            r"got input \(1, 3, 4, 4\), .*, expected input \(N, 2, H, W\) or \(2, H, W\)",
        ),
        ({"input": torch.zeros(4, 4)}, r"got input \(4, 4\), .*, expected input \(N, 2, H, W\)"),
        ({"input": torch.zeros(1, 2, 0, 4)}, "expected only the batch to be empty"),
        ({"weight": torch.zeros(2, 3, 2)}, r"weight \(2, 3, 2\), .*, expected weight \(C, K"),
    ],
)
def test_wrong_arguments_raise_errors_with_the_expected_ones(
    settings: dict[str, Any], message: str
) -> None:
    given = {"input": torch.zeros(1, 2, 4, 4), "weight": torch.zeros(2, 3, 2, 2), **settings}
    with pytest.raises(ValueError, match=message):
        conv_transpose2d(**given)
    with pytest.raises((RuntimeError, TypeError)):
        F.conv_transpose2d(**given)


def test_wrong_layer_arguments_raise_errors() -> None:
    with pytest.raises(ValueError, match="got in_channels 4, out_channels 3 and groups 2"):
        ConvTranspose2d(4, 3, 2, groups=2)
    with pytest.raises(ValueError, match="got kernel_size 0, expected"):
        ConvTranspose2d(4, 3, 0)
    with pytest.raises(ValueError, match="got padding_mode 'reflect', expected 'zeros'"):
        ConvTranspose2d(4, 4, 2, padding_mode="reflect")
