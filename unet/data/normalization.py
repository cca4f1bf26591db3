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

    def forward(self, image: Tensor, statistics: Sequence[Tensor] = ()) -> Tensor:
        """Normalise images (..., C, H, W) float32 from 0 to 1.

        `statistics` are those of the images that these are windows of; of these, if there are none.
        """
        if self.method == "given":
            return (image - self.mean[:, None, None]) / self.std[:, None, None]
        pixels = image.double()
        mean, divisor, *cuts = statistics or self.statistics(pixels)
        pixels = pixels.clamp(*cuts) if cuts else pixels
        return ((pixels - mean) / divisor).float()

    def statistics(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Mean, divisor and with percentiles the limits of images, each (..., C, 1, 1) float64."""
        cuts: list[Tensor] = []
        if self.method == "percentiles":
            values = pixels.flatten(-2).cpu().numpy()  # torch.quantile fails above 2**24 pixels
            limits = np.percentile(values, _PERCENTILES, axis=-1)
            cuts = [torch.from_numpy(limit)[..., None, None] for limit in limits]
            pixels = pixels.clamp(*cuts)
        mean = _mean(pixels)
        std = _mean((pixels - mean).square()).sqrt()
        return mean, _divisor(mean, std), *cuts

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


def normalize(
    normalization: Normalization, image: Tensor, statistics: Sequence[Tensor] = ()
) -> Tensor:
    """Normalise an image (C, H, W); missing pixels, which are NaN, become 0, the mean.

    `statistics` are the `image_statistics` of the image that this one is a window of.
    """
    statistics = statistics or image_statistics(normalization, image)
    normalised: Tensor = normalization(image, statistics)
    missing = image.isnan()
    return torch.where(missing, torch.zeros(()), normalised) if missing.any() else normalised


def image_statistics(normalization: Normalization, image: Tensor) -> tuple[Tensor, ...]:
    """Compute the statistics of an image (C, H, W) that its normalization needs, if any.

    Missing pixels, which are NaN, do not count.
    """
    if normalization.method == "given":
        return ()
    pixels, missing = image.double(), image.isnan()
    if not missing.any():
        return normalization.statistics(pixels)
    channels = []
    for channel, unknown in zip(pixels, missing, strict=True):
        # Without any pixel the statistics do not matter.
        known = channel[~unknown] if not unknown.all() else torch.zeros(1).double()
        channels.append(normalization.statistics(known[None, None]))
    return tuple(torch.cat(each) for each in zip(*channels, strict=True))


def _mean(pixels: Tensor) -> Tensor:
    # Over one axis at a time: torch splits a reduction to a single number between threads, and the
    # result would depend on their number, which differs between training and its loader's workers.
    return pixels.mean(-1, keepdim=True).mean(-2, keepdim=True)


def _divisor(mean: Tensor, std: Tensor) -> Tensor:
    """Replace the standard deviation by 1 where it is only the rounding error of a constant."""
    return torch.where(std > 1e-6 * mean.abs(), std, 1.0)
