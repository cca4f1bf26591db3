"""Transposed convolution: kernel times pixel, blocks laid down a stride apart, overlaps summed.

Start from the reverse step. A 2 x 2 convolution with stride 2 and no padding halves an image: each
2 x 2 region becomes one pixel, and no pixel is used twice.

>>> import torch
>>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
>>> torch.nn.functional.conv2d(image, torch.ones(1, 1, 2, 2), stride=2)
tensor([[[[10., 18.],
          [42., 50.]]]])

The other way around, each pixel must become a 2 x 2 region, and the kernel must have a part in it.
So a pixel becomes the kernel times that pixel:

>>> pixels = torch.tensor([[1, 10, 100], [2, 20, 200]])
>>> kernel = torch.tensor([[1, 2], [3, 4]])
>>> blocks = kernel_times_pixel(pixels, kernel)
>>> blocks.shape  # a 2 x 2 block for each of the 2 x 3 pixels
torch.Size([2, 3, 2, 2])
>>> blocks[0, 1]
tensor([[10, 20],
        [30, 40]])

Laid down side by side, 2 apart, the blocks make an image of twice the height and width:

>>> lay_blocks(blocks, stride=2)
tensor([[  1,   2,  10,  20, 100, 200],
        [  3,   4,  30,  40, 300, 400],
        [  2,   4,  20,  40, 200, 400],
        [  6,   8,  60,  80, 600, 800]])

That is the U-Net's upsampling: to upsample by n, take an n x n kernel, stride n, and no padding.
Laid down closer than they are large, blocks overlap, and what overlaps is summed:

>>> lay_blocks(blocks, stride=1)
tensor([[  1,  12, 120, 200],
        [  5,  58, 580, 800],
        [  6,  68, 680, 800]])

`conv_transpose2d` does this for images of many channels: for every pixel and every output channel,
the blocks of all input channels are summed. The sum over channels is one matrix product over the
pixels, which is a 1 x 1 convolution.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.models.conv_transpose_cpu import is_channels_last, non_overlapping_conv_transpose2d

Size2d = int | Sequence[int]


def kernel_times_pixel(input: Tensor, weight: Tensor) -> Tensor:
    """Multiply each pixel by the whole kernel: (H, W) and (kH, kW) -> blocks (H, W, kH, kW)."""
    return input[:, :, None, None] * weight


def lay_blocks(blocks: Tensor, stride: int) -> Tensor:
    """Lay blocks (H, W, kH, kW) down `stride` pixels apart and sum what overlaps."""
    height, width, kernel_height, kernel_width = blocks.shape
    image = blocks.new_zeros(
        (height - 1) * stride + kernel_height, (width - 1) * stride + kernel_width
    )
    for i in range(height):
        for j in range(width):
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
    """Transposed convolution, as `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); N may be 0.
        weight: (C, K / groups, kH, kW).
        bias: (K,), added to every output pixel.
        stride: pixels between the origins of neighbouring blocks.
        padding: pixels cropped from every side of the output.
        output_padding: pixels added below and to the right; less than stride or dilation.
        groups: into which input and output channels are split, each group on its own.
        dilation: pixels between the elements of a block.

    Returns:
        (N, K, H', W') or (K, H', W'), with H' = (H - 1) * stride - 2 * padding
        + dilation * (kH - 1) + output_padding + 1; in channels_last if the input is.

    Raises:
        ValueError: if shapes and arguments do not fit each other.

    Source: the output size is relationship 14 of Dumoulin and Visin 2016, "A guide to convolution
    arithmetic for deep learning", arXiv 1603.07285, chapter 4, for a kernel that dilation spreads.
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

    input, weight, bias = _as_autocast(input, weight, bias)
    bias = None if bias is None else bias.to(weight.dtype)  # as torch does
    if stride == tuple(weight.shape[2:]) and dilation == (1, 1):
        if not any(padding + output_padding):
            return non_overlapping_conv_transpose2d(input, weight, bias, groups)
        output = non_overlapping_conv_transpose2d(input, weight, None, groups)
    else:
        output = _lay_overlapping(input, weight, groups, stride, dilation)
    # Padding crops, as it does in the convolution that this one transposes.
    bottom, right = output_padding[0] - padding[0], output_padding[1] - padding[1]
    output = F.pad(output, (-padding[1], right, -padding[0], bottom))
    return output if bias is None else output + bias[:, None, None]


def _as_autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast casts the arguments of torch's convolutions."""
    kind = input.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return cast(input), cast(weight), None if bias is None else cast(bias)


def _lay_overlapping(
    input: Tensor,
    weight: Tensor,
    groups: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Lay the blocks down, strides apart, and sum where they overlap."""
    channels, kernel_size = input.shape[1], (weight.shape[2], weight.shape[3])
    # (G, C / G, K / G * kH * kW) -> (K * kH * kW, C / G)
    kernels = weight.reshape(groups, channels // groups, -1).transpose(1, 2)
    kernels = kernels.reshape(-1, channels // groups, 1, 1)
    blocks = F.conv2d(input, kernels, groups=groups).flatten(2)
    height, width = (
        _size_without_output_padding(pixels, kernel, step, 0, spread)
        for pixels, kernel, step, spread in zip(
            input.shape[2:], kernel_size, stride, dilation, strict=True
        )
    )
    output = _fold(blocks, (height, width), kernel_size, dilation, stride)
    if is_channels_last(input):
        output = output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return output


def _fold(
    blocks: Tensor,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """`torch.nn.functional.fold`, for the dtypes too that it does not take."""

    def fold(x: Tensor) -> Tensor:
        return F.fold(x, size, kernel_size, dilation=dilation, stride=stride)

    match blocks.dtype:
        case torch.int64:  # exact in two halves: sums of 32 bits fit into the 53 of a double
            high, low = fold((blocks >> 32).double()), fold((blocks & 0xFFFFFFFF).double())
            return (high.long() << 32) + low.long()
        case torch.complex32:
            return fold(blocks.to(torch.complex64)).to(torch.complex32)
        case _:
            return fold(blocks)


def _pair(name: str, value: Size2d, minimum: int) -> tuple[int, int]:
    """(height, width) of an argument that may be one number for both."""
    numbers = value if isinstance(value, Sequence) else (value,)
    pair = tuple(map(operator.index, numbers))
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or min(pair) < minimum:
        raise ValueError(
            f"conv_transpose2d: got {name} {value}, expected a number or a pair of them, at least "
            f"{minimum}"
        )
    return pair[0], pair[1]


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    if weight.dim() != 4:
        raise ValueError(
            f"conv_transpose2d: got weight of shape {tuple(weight.shape)}, expected "
            "(C, K / groups, kH, kW)"
        )
    channels, group_channels = weight.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"conv_transpose2d: got groups {groups} and weight of shape {tuple(weight.shape)}, "
            f"expected groups that divide its {channels} input channels"
        )
    if input.dim() not in (3, 4) or input.shape[-3] != channels:
        raise ValueError(
            f"conv_transpose2d: got input of shape {tuple(input.shape)}, expected "
            f"(N, {channels}, H, W) or ({channels}, H, W) for weight of shape {tuple(weight.shape)}"
        )
    if 0 in input.shape[-3:] or 0 in weight.shape:
        raise ValueError(
            f"conv_transpose2d: got input of shape {tuple(input.shape)} and weight of shape "
            f"{tuple(weight.shape)}, expected only the batch to be empty"
        )
    if bias is not None and tuple(bias.shape) != (groups * group_channels,):
        raise ValueError(
            f"conv_transpose2d: got bias of shape {tuple(bias.shape)}, expected "
            f"({groups * group_channels},) for weight of shape {tuple(weight.shape)} and groups "
            f"{groups}"
        )


def _check_sizes(
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    for axis, side in enumerate(("height", "width")):
        limit = max(stride[axis], dilation[axis])
        if output_padding[axis] >= limit:
            raise ValueError(
                f"conv_transpose2d: got output_padding {output_padding} with stride {stride} and "
                f"dilation {dilation}, expected less than {limit} in {side}, the larger of the two"
            )
        pixels, kernel = input.shape[axis - 2], weight.shape[axis + 2]
        size = output_padding[axis] + _size_without_output_padding(
            pixels, kernel, stride[axis], padding[axis], dilation[axis]
        )
        if size < 1:
            raise ValueError(
                f"conv_transpose2d: got padding {padding} for {side} {pixels}, which leaves an "
                f"output {side} of {size}, expected at least 1; lower the padding"
            )


def _size_without_output_padding(
    pixels: int, kernel: int, stride: int, padding: int, dilation: int
) -> int:
    """Relationship 13 of Dumoulin and Visin 2016; 14 adds the output_padding to it."""
    return stride * (pixels - 1) + dilation * (kernel - 1) + 1 - 2 * padding


class ConvTranspose2d(nn.Module):
    """Transposed convolution as a layer, to be used in place of `torch.nn.ConvTranspose2d`.

    Arguments, parameters, their names and their initialisation are those of torch's layer, so that
    state dicts go both ways. With `kernel_size=n, stride=n` it upsamples by n.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output (N, K, H', W').
        kernel_size: (height, width) of the block that a pixel becomes; a number for both.
        stride: pixels between the origins of neighbouring blocks.
        padding: pixels cropped from every side of the output.
        output_padding: pixels added below and to the right; less than stride or dilation.
        groups: into which input and output channels are split, each group on its own.
        bias: whether to add a learned number to every output channel.
        dilation: pixels between the elements of a block.
        padding_mode: zeros, as with torch's layer.
        device: of the parameters.
        dtype: of the parameters.

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
        if (
            min(in_channels, out_channels, groups) < 1
            or in_channels % groups
            or out_channels % groups
        ):
            raise ValueError(
                f"ConvTranspose2d: got in_channels {in_channels}, out_channels {out_channels} and "
                f"groups {groups}, expected groups that divide both"
            )
        if padding_mode != "zeros":
            raise ValueError(
                f"ConvTranspose2d: got padding_mode {padding_mode!r}, expected 'zeros', the only "
                "one there is"
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
        self.bias = (
            nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's layer does, from the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W'), of `output_size` (H', W') if that is given.

        Raises:
            ValueError: if no output_padding leads to `output_size`.
        """
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = self._output_padding_for(input, tuple(output_size[-2:]))
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )

    def _output_padding_for(self, input: Tensor, size: tuple[int, ...]) -> tuple[int, int]:
        smallest = [
            _size_without_output_padding(*sizes)
            for sizes in zip(
                input.shape[-2:],
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        ]
        largest = [low + step - 1 for low, step in zip(smallest, self.stride, strict=True)]
        if len(size) != 2 or not all(
            low <= pixels <= high for low, pixels, high in zip(smallest, size, largest, strict=True)
        ):
            raise ValueError(
                f"ConvTranspose2d: got output_size {size} for an input of {tuple(input.shape)}, "
                f"expected from {tuple(smallest)} to {tuple(largest)}"
            )
        return size[0] - smallest[0], size[1] - smallest[1]

    def extra_repr(self) -> str:
        """Describe the layer within `print(model)`, as torch's."""
        text = f"{self.in_channels}, {self.out_channels}"
        text += f", kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (
            ("padding", (0, 0)),
            ("dilation", (1, 1)),
            ("output_padding", (0, 0)),
            ("groups", 1),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text if self.bias is not None else text + ", bias=False"
