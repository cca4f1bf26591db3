"""Transposed convolution without overlaps: the stride is the kernel size.

The blocks tile the output. Only channels are summed, in one matrix product over the pixels. The
rest of the cost is moving the blocks to their places in memory, and three functions do that
differently. scripts/benchmark_conv_transpose.py compares them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def non_overlapping_conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """Input (N, C, H, W), weight (C, K / groups, kH, kW), bias (K,) -> (N, K, H * kH, W * kW).

    The output is channels_last if the input is.
    """
    n, channels, height, width = input.shape
    if (
        input.device.type == "cpu"
        and input.is_floating_point()
        and is_channels_last(input)
        and groups == 1
        and not torch.compiler.is_compiling()  # conditions on sizes would specialise the graph
    ):
        pixels = n * height * width
        if pixels >= 8 * channels:
            return non_overlapping_by_row(input, weight, bias)
        if pixels > 0:
            return non_overlapping_by_product(input, weight, bias)
    return non_overlapping_by_permutation(input, weight, bias, groups)


def is_channels_last(input: Tensor) -> bool:
    """Whether the channels of a pixel are adjacent in memory; works inside of vmap."""
    return input.stride(1) == 1 and input.shape[2] * input.shape[3] > 1


def non_overlapping_by_permutation(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1
) -> Tensor:
    """A 1 x 1 convolution makes all blocks, a permutation puts them in place."""
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


def non_overlapping_by_row(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Write each row of pixels directly as its kH rows of the channels_last output.

    Vertically, a transposed convolution with stride 1 is a convolution with the flipped kernel over
    an input padded with kH - 1 rows of zeros, which oneDNN skips (relationship 8 of Dumoulin and
    Visin 2016, arXiv 1603.07285). A single row of pixels gives the kH rows of its blocks.
    Horizontally, the kW columns of a block are channels, which are adjacent in memory.
    """
    n, channels, height, width = input.shape
    _, out_channels, kernel_height, kernel_width = weight.shape
    # (C, K, kH, kW) -> (K, kH, kW, C) -> (kW, K, kH, C), flipped in kH
    kernels = weight.flatten(1).t().contiguous().view(*weight.shape[1:], channels)
    kernels = torch.stack(kernels.transpose(0, 2).unbind(1)[::-1], 2)
    kernels = kernels.view(-1, kernel_height, 1, channels)
    bias = None if bias is None else bias.repeat(kernel_width)
    rows = input.permute(0, 2, 3, 1).reshape(n * height, 1, width, channels)
    output = F.conv2d(
        rows.permute(0, 3, 1, 2), kernels.permute(0, 3, 1, 2), bias, padding=(kernel_height - 1, 0)
    )
    size = (n, height * kernel_height, width * kernel_width, out_channels)
    return output.permute(0, 2, 3, 1).reshape(size).permute(0, 3, 1, 2)


def non_overlapping_by_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply the pixels by the weight as it is in memory, then shuffle the result.

    With few pixels the weight is the larger tensor, and it is not copied.
    """
    n, channels, height, width = input.shape
    _, out_channels, kernel_height, kernel_width = weight.shape
    pixels, kernels = input.permute(0, 2, 3, 1).reshape(-1, channels), weight.flatten(1)
    if bias is not None:
        bias = bias.repeat_interleave(kernel_height * kernel_width)
    if _has_fast_product(pixels, kernels):
        # Without gradients, but oneDNN also in float32, which F.linear gives to another library.
        blocks = torch.ops.mkldnn._linear_pointwise(pixels, kernels.t(), bias, "none", [], "")
    else:
        blocks = F.linear(pixels, kernels.t(), bias)
    blocks = blocks.view(n, height, width, *weight.shape[1:]).permute(0, 1, 4, 2, 5, 3)
    size = (n, height * kernel_height, width * kernel_width, out_channels)
    image: Tensor = blocks.reshape(size).permute(0, 3, 1, 2)
    return image


def _has_fast_product(pixels: Tensor, kernels: Tensor) -> bool:
    """Whether oneDNN's product without gradients, which torch keeps private, can be called."""
    return (
        torch.is_inference_mode_enabled()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and pixels.dtype == kernels.dtype
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (
            pixels.dtype == torch.float32
            or (pixels.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )
