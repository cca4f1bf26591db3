"""The brightness of the training images, to recognise images that a model was not trained for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_FAR = 4  # times darker, brighter, flatter or richer in contrast than any training image


@dataclass(frozen=True, kw_only=True)
class ImageRange:
    """The dtypes of images, and the lowest and highest mean and standard deviation of one of them.

    Numbers are those of values as `to_float` scales them.
    """

    dtypes: tuple[str, ...]
    mean: tuple[float, float]
    std: tuple[float, float]

    def compare(self, image: np.ndarray) -> str | None:
        """Describe an image (C, H, W), as `to_float`, that is far from all these; else None."""
        known = image[~np.isnan(image)].astype(np.float64)
        if not known.size:
            return None
        mean, std = float(known.mean()), float(known.std())
        room = _FAR * self.std[1]
        is_near = self.mean[0] - room <= mean <= self.mean[1] + room
        if is_near and self.std[0] / _FAR <= std <= room:
            return None
        return (
            f"its values have the mean {mean:.3g} and the standard deviation {std:.3g}, those of "
            f"the training images ({', '.join(self.dtypes)}) {_show(self.mean)} and "
            f"{_show(self.std)}; the model may not know such images"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, for a checkpoint."""
        return asdict(self)


def image_range(
    dtypes: Sequence[str], values: np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> ImageRange:
    """Return the range of N images.

    Args:
        dtypes: of the images.
        values: number of values of each image and channel, (N, C).
        sums: sums of these values.
        squares: sums of their squares.
    """
    count = values.sum(1).clip(1)
    means = sums.sum(1) / count
    stds = np.sqrt((squares.sum(1) / count - means**2).clip(0))
    return ImageRange(
        dtypes=tuple(sorted(set(dtypes))),
        mean=(float(means.min()), float(means.max())),
        std=(float(stds.min()), float(stds.max())),
    )


def _show(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
