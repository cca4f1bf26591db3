"""The project's own transposed convolution: kernel times pixel."""

import math

import torch
from torch import Tensor, nn


def conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Replace every pixel by the kernel times that pixel, block beside block.

    This is the transposed convolution whose stride is its kernel size, without padding: the
    blocks tile the output, so nothing has to be summed but the channels.

    Args:
        input: (N, C, H, W).
        weight: (C, K, kH, kW), laid out as torch's.
        bias: (K,), added to every output pixel.

    Returns:
        (N, K, H * kH, W * kW), in the memory format of channels_last.

    Raises:
        ValueError: if the input does not have the weight's C channels.
    """
    in_channels, out_channels, kernel_height, kernel_width = weight.shape
    if input.dim() != 4 or input.shape[1] != in_channels:
        raise ValueError(
            f"conv_transpose2d: got input of shape {tuple(input.shape)}, "
            f"expected (N, {in_channels}, H, W) for weight of shape {tuple(weight.shape)}"
        )
    n, _, height, width = input.shape
    # One matrix product over the pixels: (N, H, W, C) @ (C, kH * kW * K).
    kernels = weight.permute(0, 2, 3, 1).flatten(1)
    blocks = input.permute(0, 2, 3, 1) @ kernels
    # Row h of the blocks is kH rows of the image: (N, H, W, kH, kW, K) -> (N, H, kH, W, kW, K).
    output = (
        blocks.reshape(n, height, width, kernel_height, kernel_width, out_channels)
        .transpose(2, 3)
        .reshape(n, height * kernel_height, width * kernel_width, out_channels)
    )
    if bias is not None:
        output = output + bias
    return output.permute(0, 3, 1, 2)


class ConvTranspose2d(nn.Module):
    """Upsample by the factor `kernel_size`: every pixel becomes the kernel times that pixel.

    Parameters, their names and their initialisation are those of `torch.nn.ConvTranspose2d`,
    so that state dicts go both ways.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output (N, K, H * kernel_size, W * kernel_size).
        kernel_size: side of the block that a pixel becomes.
        stride: pixels between the origins of two blocks; equal to `kernel_size`.
        bias: whether to add a learned number to every output channel.

    Raises:
        ValueError: if `stride` is not `kernel_size`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if stride != kernel_size:
            raise ValueError(
                f"ConvTranspose2d: got stride {stride} and kernel_size {kernel_size}, expected "
                "them equal, so that the blocks lie side by side"
            )
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's layer does, from the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H * kernel_size, W * kernel_size)."""
        return conv_transpose2d(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Describe the layer within `print(model)`."""
        in_channels, out_channels, kernel_size, _ = self.weight.shape
        return (
            f"{in_channels}, {out_channels}, kernel_size={kernel_size}, stride={kernel_size}, "
            f"bias={self.bias is not None}"
        )
