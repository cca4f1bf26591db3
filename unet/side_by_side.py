"""Blocks that do not overlap: a transposed convolution whose stride is its kernel size.

The blocks tile the output, so there is nothing to sum but the channels: a 1 x 1 convolution makes
the blocks, and a copy puts them in place. The copy is what costs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


def lay_side_by_side(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """Put the block of every pixel in its place.

    Args:
        input: (N, C, H, W).
        weight: (C, K / groups, kH, kW).
        bias: (K,).
        groups: into which input and output channels are split.

    Returns:
        (N, K, H * kH, W * kW), in channels_last if the input is.
    """
    by_rows = (
        input.device.type == "cpu"
        and input.is_floating_point()
        and is_channels_last(input)
        and groups == 1
        and input.shape[0] > 0
        and not torch.compiler.is_compiling()
    )
    lay = _LayByRows.apply if by_rows else _lay_at_once
    output: Tensor = lay(input, weight, bias, groups)
    return output


def is_channels_last(input: Tensor) -> bool:
    """Whether a pixel's channels lie side by side (asked so that vmap can answer)."""
    return input.stride(1) == 1 and input.shape[2] * input.shape[3] > 1


def _lay_at_once(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """One product over all pixels, one rearranging copy."""
    n, channels, height, width = input.shape
    group_channels, kernel_height, kernel_width = weight.shape[1:]
    shape = (groups, kernel_height, kernel_width, group_channels)
    # (G, C / G, K / G, kH, kW) -> (G, kH, kW, K / G, C / G)
    kernels = weight.reshape(groups, -1, *weight.shape[1:]).permute(0, 3, 4, 2, 1)
    kernels = kernels.reshape(-1, channels // groups, 1, 1)
    if bias is not None:
        bias = bias.reshape(groups, 1, 1, group_channels).expand(shape).flatten()
    blocks = F.conv2d(input, kernels, bias, groups=groups).reshape(n, *shape, height, width)
    size = (height * kernel_height, width * kernel_width)
    if is_channels_last(input):
        # (N, H, kH, W, kW, G, K / G)
        image = blocks.permute(0, 5, 2, 6, 3, 1, 4).reshape(n, *size, groups * group_channels)
        return image.permute(0, 3, 1, 2)
    # (N, G, K / G, H, kH, W, kW)
    return blocks.permute(0, 1, 4, 5, 2, 6, 3).reshape(n, groups * group_channels, *size)


class _LayByRows(torch.autograd.Function):
    """`_lay_at_once` for one group in channels_last on a CPU: some rows at a time.

    A few rows' blocks are put in place while they are in the processor's cache, so that memory is
    passed over once; likewise backward. Measured by scripts/benchmark_conv_transpose.py.
    """

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, _groups: int) -> Tensor:
        n, channels, height, width = input.shape
        _, out_channels, kernel_height, kernel_width = weight.shape
        # (C, K, kH * kW) -> (kH * kW, K, C), by way of its transpose: twice as fast as at once.
        kernels = weight.flatten(1).t().contiguous().view(out_channels, -1, channels)
        kernels = kernels.transpose(0, 1).reshape(-1, channels, 1, 1)
        if bias is not None:
            bias = bias.repeat(kernel_height * kernel_width)
        output = input.new_empty(n * height, kernel_height, width, kernel_width * out_channels)
        rows = _rows(input)
        for part in _parts(rows, weight):
            blocks = F.conv2d(rows[:, :, part], kernels, bias)
            output[part] = (
                blocks.permute(0, 2, 3, 1)
                .reshape(-1, width, kernel_height, kernel_width * out_channels)
                .transpose(1, 2)
            )
        output = output.view(n, height * kernel_height, width * kernel_width, out_channels)
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        input, weight, _, _ = inputs
        ctx.save_for_backward(input, weight)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        _, channels, _, width = input.shape
        _, out_channels, kernel_height, kernel_width = weight.shape
        of_input: Tensor | None = None
        of_weight: Tensor | None = None
        of_bias: Tensor | None = None
        if ctx.needs_input_grad[0]:  # the reverse step: the convolution that this one transposes
            of_input = F.conv2d(gradient, weight, stride=(kernel_height, kernel_width))
        if ctx.needs_input_grad[1]:
            rows = _rows(input)
            laid = gradient.permute(0, 2, 3, 1).reshape(
                rows.shape[2], kernel_height, width, kernel_width * out_channels
            )
            shape = (channels, kernel_height * kernel_width * out_channels, 1, 1)
            for part in _parts(rows, weight):
                blocks = laid[part].transpose(1, 2).reshape(1, -1, width, shape[1])
                blocks = blocks.permute(0, 3, 1, 2)
                of_part = conv2d_weight(  # type: ignore[no-untyped-call]
                    blocks, shape, rows[:, :, part]
                )
                of_weight = of_part if of_weight is None else of_weight + of_part
            assert of_weight is not None  # there is a row, so there is a part
            of_weight = of_weight.reshape(channels, kernel_height, kernel_width, out_channels)
            of_weight = of_weight.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_input, of_weight, of_bias, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias, _ = tangents
        result = _lay_at_once(input, torch.zeros_like(weight), of_bias)
        if of_input is not None:
            result = result + _lay_at_once(of_input, weight, None)
        if of_weight is not None:
            result = result + _lay_at_once(input, of_weight, None)
        return result

    @staticmethod
    def vmap(_info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return torch.vmap(_lay_at_once, in_dims=in_dims)(*inputs), 0


def _rows(input: Tensor) -> Tensor:
    """The rows of all images one below the other: (N, C, H, W) -> (1, C, N * H, W)."""
    n, channels, height, width = input.shape
    rows = input.permute(0, 2, 3, 1).reshape(1, n * height, width, channels)
    return rows.permute(0, 3, 1, 2)


def _parts(rows: Tensor, weight: Tensor) -> list[slice]:
    """Cut rows (1, C, R, W) so that the blocks of each part, 4 MiB of float32, stay in the cache.

    The weight is packed anew for each part, so a part's blocks are at least twice its size.
    """
    row = max(1, rows.shape[3] * weight[0].numel())
    step = max(1, max(2**20, 2 * weight.numel()) // row)
    return [slice(start, start + step) for start in range(0, rows.shape[2], step)]
