"""What the pixels of a data set tell about the settings that suit it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unet.data.classes import IGNORE_INDEX
from unet.data.image_io import to_float
from unet.data.pairing import Pair
from unet.data.reader import PairReader
from unet.inspection.discovery import read_each

_MAX_IMAGES, _MAX_PIXELS = 200, 10**8
"""At most so many images and pixels are read."""

_REACH = 3
"""Pixels on both sides of a mask's edge in which the image's edge is looked for."""

_WRONG_PIXELS = 0.01
"""Masks that are off at fewer pixels than this fraction are taken to be right."""


@dataclass(frozen=True)
class Evidence:
    """Statistics of some pairs.

    Args:
        count: number of the pairs.
        spread: standard deviation of the images' mean brightness, in mean standard deviations of
            the brightness within an image.
        upright: what tells an upper half from a lower half, in words; None if nothing does.
        sided: what tells left from right.
        offset_y: how far the masks lie above or below the edges in the images, in words; None if
            few pixels are concerned.
        offset_x: how far they lie to one side of them.
    """

    count: int
    spread: float
    upright: str | None
    sided: str | None
    offset_y: str | None = None
    offset_x: str | None = None


def find_evidence(pairs: Sequence[Pair], reader: PairReader) -> Evidence:
    """Read some pairs and compare the halves of images, and images with each other."""
    step = max(1, len(pairs) // _MAX_IMAGES)
    means, stds, halves, offsets = [], [], [], []
    for image, ids in _read_some(pairs[::step], reader):
        brightness = image.mean(0)
        means.append(brightness.mean())
        stds.append(brightness.std())
        halves.append([_compare(brightness, ids, reader, axis) for axis in (0, 1)])
        offsets.append([_measure_offset(brightness, ids, axis) for axis in (0, 1)])
    if not halves:
        return Evidence(0, 0.0, None, None)
    differences = np.array(halves)  # (image, axis, brightness and classes)
    within = float(np.mean(stds))
    names = ["brightness", *reader.classes.names]
    return Evidence(
        count=len(halves),
        spread=float(np.std(means)) / within if within else 0.0,
        upright=_describe(differences[:, 0], names, ("upper", "lower"), smallest=0.25),
        # A mirrored scene looks natural, so that small differences do not count.
        sided=_describe(differences[:, 1], names, ("left", "right"), smallest=1.5),
        offset_y=_describe_offset(np.array(offsets)[:, 0], ("above", "below")),
        offset_x=_describe_offset(np.array(offsets)[:, 1], ("left of", "right of")),
    )


def _read_some(
    pairs: Sequence[Pair], reader: PairReader
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    num_pixels = 0
    for pixels, ids in read_each(reader.read, pairs):
        image = np.nan_to_num(to_float(pixels), posinf=0, neginf=0)
        yield image, ids
        num_pixels += ids.size
        if num_pixels > _MAX_PIXELS:
            return


def _compare(brightness: np.ndarray, ids: np.ndarray, reader: PairReader, axis: int) -> list[float]:
    """Differences between the first and the second half of an image along an axis.

    Of the brightness in standard deviations, and of the fraction of each class.
    """
    middle = ids.shape[axis] // 2
    first, second = (
        (
            one.take(range(middle), axis),
            one.take(range(ids.shape[axis] - middle, ids.shape[axis]), axis),
        )
        for one in (brightness, ids)
    )
    std = float(brightness.std()) or 1.0
    fractions = [
        float((second[0] == k).mean() - (second[1] == k).mean())
        for k in range(len(reader.classes.names))
    ]
    return [float(first[0].mean() - first[1].mean()) / std, *fractions]


def _describe(
    differences: np.ndarray, names: Sequence[str], halves: tuple[str, str], smallest: float
) -> str | None:
    """Describe the difference (N, names) that is least likely by chance; None if all are likely.

    `smallest` is the least mean difference that counts, in standard deviations over the images.
    """
    count = len(differences)
    if count < 5:
        return None
    mean, std = differences.mean(0), differences.std(0, ddof=1)
    effects = np.divide(np.abs(mean), std, out=np.zeros_like(mean), where=std > 1e-9)
    # With two classes, what one has more of, the background has less of.
    effects[1] *= len(names) > 3
    best = int(effects.argmax())
    # Student's t; few images need more of it, as their standard deviation is uncertain.
    if effects[best] < smallest or effects[best] * math.sqrt(count) < 4 + 20 / count:
        return None
    more, less = halves if mean[best] > 0 else halves[::-1]
    what = "are brighter" if best == 0 else f"have more of {names[best]}"
    return f"{more} halves {what} than {less} halves (by {effects[best]:.1f} standard deviations)"


def _measure_offset(brightness: np.ndarray, ids: np.ndarray, axis: int) -> tuple[float, float]:
    """How many pixels the mask's edges lie before those of the image, and their fraction.

    The number is NaN if the image has no edges there.
    """
    image, mask = np.moveaxis(brightness, axis, 0), np.moveaxis(ids, axis, 0)
    steepness = np.abs(np.diff(_smooth(_smooth(image.T).T), axis=0))
    known = mask != IGNORE_INDEX
    edges = (mask[1:] != mask[:-1]) & known[1:] & known[:-1]
    inner = edges[_REACH:-_REACH]
    if not inner.any():
        return math.nan, 0.0
    offsets = np.arange(-_REACH, _REACH + 1)
    means = np.array(
        [
            steepness[_REACH + offset : len(steepness) - _REACH + offset][inner].mean()
            for offset in offsets
        ]
    )
    weights = means - means.min()
    return float(weights @ offsets / (weights.sum() or math.nan)), float(edges.mean())


def _smooth(image: np.ndarray) -> np.ndarray:
    """Blur an image along its first axis with a binomial filter; edges are repeated."""
    padded = np.pad(image, ((2, 2), (0, 0)), mode="edge")
    length = len(image)
    weights = np.array([1, 4, 6, 4, 1]) / 16
    blurred: np.ndarray = sum(w * padded[i : i + length] for i, w in enumerate(weights))
    return blurred


def _describe_offset(measured: np.ndarray, sides: tuple[str, str]) -> str | None:
    """Describe measured offsets and fractions (N, 2); None if chance may explain them."""
    offsets, fractions = measured[~np.isnan(measured[:, 0])].T
    count = len(offsets)
    if count < 5:
        return None
    mean, error = offsets.mean(), offsets.std(ddof=1) / math.sqrt(count)
    wrong = abs(mean) * fractions.mean()
    if wrong < _WRONG_PIXELS or abs(mean) < (4 + 20 / count) * error:
        return None
    return f"{abs(mean):.1f} pixels {sides[int(mean < 0)]} the edges in the images"
