"""Random changes to the values of an image: gamma, colour, blur, noise and compression."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """Changes of image values; with the default arguments none, and no random number is drawn.

    The arguments are those of `Augmentation`.
    """

    gamma: float = 0.0
    color: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int | None = None

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Change an image (C, H, W) float32, normalised to mean 0 and standard deviation 1."""
        if self.gamma:
            image = _bend(image, math.exp(rng.uniform(-1, 1) * math.log1p(self.gamma)))
        if self.color:
            gains, shifts = rng.uniform(-self.color, self.color, (2, len(image), 1, 1))
            image = image * torch.from_numpy(1 + gains).float() + torch.from_numpy(shifts).float()
        if self.blur and (sigma := rng.uniform(0, self.blur)) > 0.1:
            size = 2 * math.ceil(3 * sigma) + 1
            if size // 2 < min(image.shape[-2:]):  # it is mirrored at the borders
                # Slow to import, and most runs do not need it.
                from torchvision.transforms.v2.functional import gaussian_blur

                image = gaussian_blur(image, [size, size], [sigma, sigma])
        if self.noise:
            noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, self.noise)
            image = image + torch.from_numpy(noise.astype(np.float32))
        if self.jpeg is not None:
            image = _compress(image, int(rng.integers(self.jpeg, 101)))
        return image


def _bend(image: Tensor, exponent: float) -> Tensor:
    """Raise values to a power, between the smallest and the largest of the image."""
    low, high = image.min(), image.max()
    span = (high - low).clamp(min=1e-6)
    return ((image - low) / span) ** exponent * span + low


def _compress(image: Tensor, quality: int) -> Tensor:
    """Write the image as JPEG and read it again, with three channels together or one by one."""
    low, high = image.min(), image.max()
    span = (high - low).clamp(min=1e-6)
    pixels = ((image - low) / span * 255).round().to(torch.uint8).numpy()
    groups = [pixels.transpose(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    read = []
    for group in groups:
        buffer = io.BytesIO()
        Image.fromarray(group).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as picture:
            read.append(np.array(picture).reshape(*image.shape[-2:], -1))
    changed = torch.from_numpy(np.concatenate(read, 2).transpose(2, 0, 1).astype(np.float32))
    return changed / 255 * span + low
