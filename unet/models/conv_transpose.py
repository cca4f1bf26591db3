"""Transposed convolution: each pixel times the kernel, blocks placed one stride apart and summed.

Start from the reverse step. A 2 x 2 convolution with stride 2 and no padding halves an image: each
2 x 2 region becomes one pixel, and no pixel is used twice.

>>> import torch
>>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
>>> torch.nn.functional.conv2d(image, torch.ones(1, 1, 2, 2), stride=2)
tensor([[[[10., 18.],
          [42., 50.]]]])

In the other direction each pixel becomes a 2 x 2 region: the kernel times that pixel.

>>> pixels = torch.tensor([[1, 10, 100], [2, 20, 200]])
>>> kernel = torch.tensor([[1, 2], [3, 4]])
>>> blocks = kernel_times_pixel(pixels, kernel)
>>> blocks.shape  # a 2 x 2 block for each of the 2 x 3 pixels
torch.Size([2, 3, 2, 2])
>>> blocks[0, 1]
tensor([[10, 20],
        [30, 40]])

Placed next to each other, 2 pixels apart, the blocks make an image of twice the height and width:

>>> lay_blocks(blocks, stride=2)
tensor([[  1,   2,  10,  20, 100, 200],
        [  3,   4,  30,  40, 300, 400],
        [  2,   4,  20,  40, 200, 400],
        [  6,   8,  60,  80, 600, 800]])

This is the upsampling of the U-Net: to upsample by n, take an n x n kernel, stride n, no padding.
With a stride smaller than the kernel the blocks overlap, and overlapping values are summed:

>>> lay_blocks(blocks, stride=1)
tensor([[  1,  12, 120, 200],
        [  5,  58, 580, 800],
        [  6,  68, 680, 800]])

`conv_transpose2d` does this for images with many channels. For every pixel and every output channel
it sums the blocks of all input channels. That sum is one matrix product over the pixels, which is a
1 x 1 convolution.
"""

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from unet.models.conv_transpose_cpu import is_channels_last, non_overlapping_conv_transpose2d

Size2d = int | Sequence[int]
Pair = tuple[int, int]  # (height, width)


def kernel_times_pixel(input: Tensor, weight: Tensor) -> Tensor:
    """Multiply each pixel by the whole kernel: (H, W) and (kH, kW) -> blocks (H, W, kH, kW)."""
    return input[:, :, None, None] * weight


def lay_blocks(blocks: Tensor, stride: int) -> Tensor:
    """Place blocks (H, W, kH, kW) `stride` pixels apart and sum where they overlap."""
    height, width, kernel_height, kernel_width = blocks.shape
    bottom, right = (height - 1) * stride + kernel_height, (width - 1) * stride + kernel_width
    image = blocks.new_zeros(bottom, right)
    for i, j in itertools.product(range(height), range(width)):
        top, left = i * stride, j * stride
        image[top : top + kernel_height, left : left + kernel_width] += blocks[i, j]
    return image


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Size2d = 0,
    output_padding: Size2d = 0,
    groups: int = 1,
    dilation: Size2d = 1,
) -> Tensor:
    """Transposed convolution, with the arguments of `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); N may be 0.
        weight: (C, K / groups, kH, kW).
        bias: (K,).
        stride: distance in pixels between neighbouring blocks.
        padding: pixels cropped from every side of the output.
        output_padding: pixels added at the bottom and at the right.
        groups: groups of channels that are computed separately.
        dilation: distance in pixels between the elements of a block.

    Returns:
        (N, K, H', W') or (K, H', W') with H' = (H - 1) * stride - 2 * padding + dilation * (kH - 1)
        + output_padding + 1; channels_last if the input is.

    Raises:
        ValueError: if shapes and arguments do not fit.

    Source: H' is relationship 14 of Dumoulin and Visin 2016, arXiv 1603.07285, with dilation.
    """
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    output_padding = _pair("output_padding", output_padding, 0)
    dilation = _pair("dilation", dilation, 1)
    _check_shapes(input, weight, bias, groups)
    _check_sizes(input, weight, stride, padding, output_padding, dilation)
    if input.dim() == 3:
        return conv_transpose2d(
            input.unsqueeze(0), weight, bias, stride, padding, output_padding, groups, dilation
        ).squeeze(0)

    if 0 in input.shape[2:]:  # of an empty batch; convolutions take no empty images
        height, width = _output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
        arguments = stride, padding, output_padding, groups, dilation
        output = conv_transpose2d(F.pad(input, (0, 1, 0, 1)), weight, bias, *arguments)
        return output[..., : height + output_padding[0], : width + output_padding[1]]
    input, weight = _autocast(input), _autocast(weight)
    bias = None if bias is None else _autocast(bias).to(weight.dtype)  # as torch does
    # Padding crops, as it does in the convolution that this one transposes.
    bottom, right = output_padding[0] - padding[0], output_padding[1] - padding[1]
    borders = -padding[1], right, -padding[0], bottom
    if stride != tuple(weight.shape[2:]) or dilation != (1, 1):
        return _overlapping_conv_transpose2d(input, weight, bias, groups, stride, dilation, borders)
    if not any(borders):
        return non_overlapping_conv_transpose2d(input, weight, bias, groups)
    output = F.pad(non_overlapping_conv_transpose2d(input, weight, None, groups), borders)
    return output if bias is None else output + bias[:, None, None]


def _autocast(x: Tensor) -> Tensor:
    """Cast as autocast casts the arguments of torch's convolutions."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if castable else x


def _overlapping_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    stride: Pair,
    dilation: Pair,
    borders: Sequence[int],
) -> Tensor:
    """Make blocks, sum them where they overlap, pad or crop by `borders` and add the bias."""
    if input.dtype == weight.dtype and input.dtype in (torch.bfloat16, torch.float16):
        # Sums of rounded blocks would be several roundings away from the exact result.
        with torch.autocast(input.device.type, enabled=False):
            others = input.float(), weight.float(), None if bias is None else bias.float()
            return _overlapping_conv_transpose2d(*others, groups, stride, dilation, borders).to(
                input.dtype
            )
    channels, kernel_size = input.shape[1], weight.shape[2:]
    # (G, C / G, K / G * kH * kW) -> (K * kH * kW, C / G)
    kernels = weight.reshape(groups, channels // groups, -1).transpose(1, 2)
    kernels = kernels.reshape(-1, channels // groups, 1, 1)
    blocks = F.conv2d(input, kernels, groups=groups).flatten(2)
    size = _output_size(input.shape[2:], kernel_size, stride, (0, 0), dilation)

    def fold(x: Tensor) -> Tensor:
        return F.fold(x, size, kernel_size, dilation, stride=stride)

    match blocks.dtype:  # fold has no int64 and complex32
        case torch.int64:  # exact: sums of 32-bit halves fit into the 53 bits of a double
            high, low = fold((blocks >> 32).double()), fold((blocks & 0xFFFFFFFF).double())
            output = (high.long() << 32) + low.long()
        case torch.complex32:
            output = fold(blocks.to(torch.complex64)).to(torch.complex32)
        case _:
            output = fold(blocks)
    if is_channels_last(input):
        output = output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    output = F.pad(output, tuple(borders))
    return output if bias is None else output + bias[:, None, None]


def _pair(name: str, value: Size2d, minimum: int) -> Pair:
    """Expand a number to (height, width)."""
    numbers = value if isinstance(value, Sequence) else (value, value)
    pair = tuple(map(operator.index, numbers)) * (2 if len(numbers) == 1 else 1)
    if len(pair) != 2 or min(pair) < minimum:
        raise ValueError(
            f"conv_transpose2d: got {name} {value}, expected a number or a pair, at least {minimum}"
        )
    return pair[0], pair[1]


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    channels = weight.shape[0] if weight.dim() == 4 else 0
    if not channels:
        expected = "weight (C, K / groups, kH, kW)"
    elif groups < 1 or channels % groups:
        expected = f"groups that divide the {channels} input channels"
    elif input.dim() not in (3, 4) or input.shape[-3] != channels:
        expected = f"input (N, {channels}, H, W) or ({channels}, H, W)"
    elif 0 in weight.shape or (0 in input.shape[-2:] and (input.dim() == 3 or input.shape[0])):
        expected = "only the batch to be empty"
    elif bias is not None and tuple(bias.shape) != (groups * weight.shape[1],):
        expected = f"bias ({groups * weight.shape[1]},)"
    else:
        return
    raise ValueError(
        f"conv_transpose2d: got input {tuple(input.shape)}, weight {tuple(weight.shape)}, bias "
        f"{None if bias is None else tuple(bias.shape)} and groups {groups}, expected {expected}"
    )


def _check_sizes(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, output_padding: Pair, dilation: Pair
) -> None:
    sizes = _output_size(input.shape[-2:], weight.shape[2:], stride, padding, dilation)
    for axis, side in enumerate(("height", "width")):
        limit = max(stride[axis], dilation[axis])
        if output_padding[axis] >= limit:
            raise ValueError(
                f"conv_transpose2d: got output_padding {output_padding} with stride {stride} and "
                f"dilation {dilation}, expected less than {limit} in {side}, the larger of the two"
            )
        # As in torch, an output of an empty batch may also be empty in height or width.
        smallest = 0 if input.dim() == 4 and input.shape[0] == 0 else 1
        if (size := sizes[axis] + output_padding[axis]) < smallest:
            raise ValueError(
                f"conv_transpose2d: got padding {padding} for {side} {input.shape[axis - 2]}, which"
                f" leaves an output {side} of {size}, expected at least {smallest}; lower the "
                "padding"
            )


def _output_size(
    input: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    """Relationship 13 of Dumoulin and Visin 2016; in relationship 14 output_padding adds to it."""
    height, width = (
        s * (i - 1) + d * (k - 1) + 1 - 2 * p
        for i, k, s, p, d in zip(input, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


class ConvTranspose2d(nn.Module):
    """Drop-in replacement for `torch.nn.ConvTranspose2d`; `kernel_size=n, stride=n` upsamples by n.

    Arguments, parameters, initialisation and state dict are those of torch's layer. Functions that
    ask for torch's class do not know this one: `spectral_norm` needs `dim=1`.

    Raises:
        ValueError: if the arguments do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Size2d = 0,
        output_padding: Size2d = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size2d = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = in_channels, out_channels
        if min(*channels, groups) < 1 or any(number % groups for number in channels):
            raise ValueError(
                f"ConvTranspose2d: got in_channels {in_channels}, out_channels {out_channels} and "
                f"groups {groups}, expected groups that divide both"
            )
        if padding_mode != "zeros":
            raise ValueError(
                f"ConvTranspose2d: got padding_mode {padding_mode!r}, expected 'zeros'"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.padding = _pair("padding", padding, 0)
        self.output_padding = _pair("output_padding", output_padding, 0)
        self.groups = groups
        self.dilation = _pair("dilation", dilation, 1)
        self.padding_mode = padding_mode
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        empty = torch.empty(out_channels, device=device, dtype=dtype) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's layer does, with the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W'); `output_size` (H', W') chooses the output_padding.

        Raises:
            ValueError: if no output_padding gives `output_size`.
        """
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = _output_padding_for(
                input, output_size, self.kernel_size, self.stride, self.padding, self.dilation
            )
        arguments = self.stride, self.padding, output_padding, self.groups, self.dilation
        return conv_transpose2d(input, self.weight, self.bias, *arguments)

    def extra_repr(self) -> str:
        """Describe the layer as torch's `extra_repr` does."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        defaults = {"padding": (0, 0), "dilation": (1, 1), "output_padding": (0, 0), "groups": 1}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text if self.bias is not None else text + ", bias=False"


def _output_padding_for(
    input: Tensor, size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    size = tuple(size[-2:])
    smallest = _output_size(input.shape[-2:], kernel, stride, padding, dilation)
    largest = smallest[0] + stride[0] - 1, smallest[1] + stride[1] - 1
    fits = [low <= side <= high for low, side, high in zip(smallest, size, largest, strict=False)]
    if len(size) != 2 or not all(fits):
        raise ValueError(
            f"ConvTranspose2d: got output_size {size} for an input of {tuple(input.shape)}, "
            f"expected from {smallest} to {largest}"
        )
    return size[0] - smallest[0], size[1] - smallest[1]


# torch.fx traces calls of these, as it does those of torch's layer, not what they do with sizes.
fx.wrap("conv_transpose2d")
fx.wrap("_output_padding_for")
