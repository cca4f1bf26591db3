"""What every network has, whatever computes it: images of any size on the network's grid."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.models.blocks import mirrored
from unet.models.receptive_field import Geometry


class Network(nn.Module, ABC):
    """A network that computes images whose sides fit its grid; this class takes those of any size.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits.
        geometry: sizes of the network; output_stride, margin and context are copies.
    """

    def __init__(self, in_channels: int, num_classes: int, geometry: Geometry) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.geometry = geometry
        self.output_stride = geometry.output_stride
        self.margin = geometry.margin
        self.context = geometry.context

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, H, W) -> logits (N, K, H, W); with context smaller by 2 * `context`.

        Raises:
            ValueError: if there is context and the levels cannot halve H and W evenly.
        """
        height, width = image.shape[-2:]
        if self.context:
            smallest = self.geometry.input_side(1)
            if any(
                side < smallest or (side - smallest) % self.output_stride
                for side in (height, width)
            ):
                raise ValueError(
                    f"UNet: got an image of {height} x {width} pixels, expected sides of {smallest}"
                    f" plus multiples of {self.output_stride} with padding valid; pad the image "
                    "with UNet.mirror_context"
                )
            return self.forward_on_grid(image)
        # Each level halves evenly, and the deepest has at least 2 x 2 pixels, as norms need.
        bottom, right = (
            max(-side % self.output_stride, 2 * self.output_stride - side)
            for side in (height, width)
        )
        x = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.forward_on_grid(x)[..., :height, :width]

    def mirror_context(self, image: Tensor) -> Tensor:
        """Mirror an image (..., H, W) at its borders for padding valid; otherwise return it.

        The logits of the result start at the image's first pixel and have at least its size.
        """
        if self.context:
            for axis in (-2, -1):
                side = image.shape[axis]
                indices = torch.arange(self.geometry.input_side(side), device=image.device)
                image = image.index_select(axis, mirrored(indices - self.context, side))
        return image

    @abstractmethod
    def forward_on_grid(self, x: Tensor) -> Tensor:
        """Image with H and W 2, 3, ... times `output_stride` -> logits (N, K, H, W).

        With padding valid as `forward`.
        """
