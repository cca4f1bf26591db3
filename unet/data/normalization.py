"""Images to a mean of 0 and a standard deviation of 1: in training, prediction and export."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Method = Literal["given", "image", "percentiles"]

_PERCENTILES = (0.5, 99.5)


class Normalization(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation.

    With the method given these are `mean` and `std`, C numbers each, for images from 0 to 1. With
    image they are those of each image; with percentiles likewise, after clipping each image to its
    percentiles 0.5 and 99.5 (not exportable).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, method: Method = "given", mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise images (..., C, H, W) float32 from 0 to 1."""
        if self.method == "given":
            return (image - self.mean[:, None, None]) / self.std[:, None, None]
        pixels = image.double()
        if self.method == "percentiles":
            values = pixels.flatten(-2).cpu().numpy()  # torch.quantile fails above 2**24 pixels
            low, high = np.percentile(values, _PERCENTILES, axis=-1)
            pixels = pixels.clamp(*(torch.from_numpy(cut)[..., None, None] for cut in (low, high)))
        mean = _mean(pixels)
        std = _mean((pixels - mean).square()).sqrt()
        return ((pixels - mean) / _divisor(mean, std)).float()

    def __str__(self) -> str:
        if self.method != "given":
            return self.method
        mean, std = ([round(value, 3) for value in one.tolist()] for one in (self.mean, self.std))
        return f"mean {mean} and std {std}"

    def to_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, for a checkpoint."""
        mean, std = (tuple(one.tolist()) for one in (self.mean, self.std))
        return {"method": self.method, "mean": mean, "std": std}


def normalization_from_sums(
    pixels: int | np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> Normalization:
    """Make a `given` normalization from many images.

    Of each channel: the number of values, their sum, and the sum of their squares (C,) float64.
    """
    mean = torch.from_numpy(sums / pixels)
    std = (torch.from_numpy(squares / pixels) - mean**2).clamp(min=0).sqrt()
    return Normalization(mean=mean.tolist(), std=_divisor(mean, std).tolist())


def normalize(normalization: Normalization, image: Tensor) -> Tensor:
    """Normalise an image (C, H, W); missing pixels, which are NaN, become 0, the mean."""
    missing = image.isnan()
    if not missing.any():
        normalised: Tensor = normalization(image)
        return normalised
    if normalization.method == "given":
        return torch.where(missing, torch.zeros(()), normalization(image))
    result = torch.zeros_like(image)
    for i, known in enumerate(~missing):  # whose statistics are those of the other pixels
        if known.any():
            result[i][known] = normalization(image[i][known][None, None])[0, 0]
    return result


def _mean(pixels: Tensor) -> Tensor:
    # Over one axis at a time: torch splits a reduction to a single number between threads, and the
    # result would depend on their number, which differs between training and its loader's workers.
    return pixels.mean(-1, keepdim=True).mean(-2, keepdim=True)


def _divisor(mean: Tensor, std: Tensor) -> Tensor:
    """Replace the standard deviation by 1 where it is only the rounding error of a constant."""
    return torch.where(std > 1e-6 * mean.abs(), std, 1.0)
