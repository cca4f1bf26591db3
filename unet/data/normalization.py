"""Docstring to be written."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """To a mean of 0 and a standard deviation of 1.

    Args:
        method: by the numbers given, each image by its own, or that without its darkest and
            brightest 0.5 %, which are cut off.
        mean: of each channel, for given numbers.
        std: likewise.
    """

    method: Literal["given", "image", "percentiles"] = "given"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Say how, in words."""
        if self.method != "given":
            return self.method
        mean, std = ([round(number, 3) for number in part] for part in (self.mean, self.std))
        return f"mean {mean} and std {std}"

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W), integers scaled from 0 to 1 -> normalised."""
        if self.method == "given":
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            return (image - mean[:, None, None]) / std[:, None, None]
        # NumPy's sums are the same with any number of threads, in the main process and in workers.
        pixels = image.flatten(1).numpy().astype(np.float64)
        if self.method == "percentiles":
            low, high = np.percentile(pixels, (0.5, 99.5), axis=1, keepdims=True)
            pixels = pixels.clip(low, high)
        mean = pixels.mean(1, keepdims=True)
        normalised = (pixels - mean) / _contrast(mean, pixels.std(1, keepdims=True))
        return torch.from_numpy(normalised.astype(np.float32)).reshape(image.shape)


def normalization_of(
    pixels: int | np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> Normalization:
    """Mean and standard deviation from the number, sums (C,) and squares (C,) of the pixels."""
    mean = sums / pixels
    std = _contrast(mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0)))
    return Normalization(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _contrast(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The standard deviation to divide by: 1 where all is the same but for rounding."""
    return np.where(std > 1e-6 * np.abs(mean), std, 1.0)
