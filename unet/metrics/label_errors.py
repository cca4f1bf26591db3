"""How well a mask fits the probabilities of a model that has not seen it, and what fits better.

`target` is (H, W) class ids, 255 ignored; `probabilities` are (K, H, W) float32. A cost is the
expected number of wrong pixels of a mask if the probabilities are right.
"""

from typing import NamedTuple

import numpy as np

from unet.data.classes import IGNORE_INDEX
from unet.runtime.optional import import_extra

REACH = 8
"""Largest shift in pixels that is tried."""
WIDTHS = range(-4, 5)
"""Pixels by which classes are dilated; negative ones erode."""
GRID = 32
"""Side of the coarse picture by which masks of other images are recognised."""
FEATURE = "the review of masks"


def boundary_length(ids: np.ndarray) -> int:
    """Count neighbouring pixels, one above or left of the other, of different classes."""
    return sum(
        int(((one != other) & (one != IGNORE_INDEX) & (other != IGNORE_INDEX)).sum())
        for one, other in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1]))
    )


def pixel_costs(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return 1 - p of the target's class, (H, W), and 0 where the target is ignored."""
    counted = target != IGNORE_INDEX
    ids = np.where(counted, target, 0).astype(np.intp)
    own = np.take_along_axis(probabilities, ids[None], 0)[0]
    return np.where(counted, 1 - own, 0)


def shift_costs(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute the cost of a mask that is moved back by each shift, (2 r + 1, 2 r + 1).

    Entry (r + dy, r + dx) is for a mask that lies dy below and dx right of the image, r = `REACH`,
    less in small images. Pixels within r of the edge are left out, so all entries have the same.
    """
    fft = import_extra("scipy.fft", FEATURE)
    height, width = target.shape
    r = min(REACH, (min(height, width) - 1) // 4)
    size = [fft.next_fast_len(side, real=True) for side in (height, width)]
    inner = np.full(target.shape, IGNORE_INDEX, np.uint8)
    inner[r : height - r, r : width - r] = target[r : height - r, r : width - r]
    spectrum = 0
    for one, p in enumerate(probabilities):
        inside = (inner == one).astype(np.float32)
        spectrum = spectrum + np.conj(fft.rfft2(inside, size)) * fft.rfft2(p, size)
    fits = fft.irfft2(spectrum, size)  # [d]: sum of p(x + d) over pixels x of the mask
    rolled = np.roll(fits, (r, r), (0, 1))[: 2 * r + 1, : 2 * r + 1]
    # The mask is moved by d, so it lay at -d.
    costs: np.ndarray = np.count_nonzero(inner != IGNORE_INDEX) - rolled[::-1, ::-1]
    return costs


def width_costs(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute the cost of a mask in which one class is dilated, (K, len(WIDTHS)).

    Only pixels that change between the class and all others count. NaN for the first class and
    for classes without pixels or without others.
    """
    ndimage = import_extra("scipy.ndimage", FEATURE)
    costs = np.full((len(probabilities), len(WIDTHS)), np.nan)
    counted = target != IGNORE_INDEX
    low, high = WIDTHS[0], WIDTHS[-1]
    for one in range(1, len(probabilities)):
        inside = target == one
        if not inside.any() or inside.all():
            continue
        # A class dilated by k has the pixels of a level of at most k.
        level = np.ceil(ndimage.distance_transform_edt(~inside))
        level -= np.maximum(np.ceil(ndimage.distance_transform_edt(inside)) - 1, 0)
        bins = (level.clip(low, high + 1) - low).astype(np.intp)[counted]
        p = probabilities[one][counted]
        count = len(WIDTHS) + 1
        missed = np.bincount(bins, p, count)  # if the pixels of a level are not of the class
        invented = np.bincount(bins, 1 - p, count)
        costs[one] = np.cumsum(invented)[:-1] + missed.sum() - np.cumsum(missed)[:-1]
    return costs


def coarse(maps: np.ndarray) -> np.ndarray:
    """Average maps (K, H, W) in a grid; less its mean, of norm 1, flat; zeros for constant maps."""
    height, width = maps.shape[1:]
    rows, columns = (np.arange(GRID + 1) * side // GRID for side in (height, width))
    sums = np.pad(maps.cumsum(1, dtype=np.float64).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    corners = sums[:, rows][:, :, columns]
    means = np.diff(np.diff(corners, axis=1), axis=2)
    means = means / np.maximum(np.outer(np.diff(rows), np.diff(columns)), 1)
    means -= means.mean((1, 2), keepdims=True)
    norm = np.sqrt(np.square(means).sum())
    flat: np.ndarray = (means / max(norm, 1e-9)).astype(np.float32).ravel()
    return flat


class Region(NamedTuple):
    """A connected region in which a confident model and the mask disagree."""

    pixels: np.ndarray  # bool, of the box
    box: tuple[slice, slice]
    target: int  # most common class of the mask
    prediction: int
    area: int
    confidence: float  # mean probability of the predicted class minus that of the mask's


def disputed_regions(
    target: np.ndarray,
    probabilities: np.ndarray,
    confident: np.ndarray,
    depth: float,
) -> list[Region]:
    """Find regions in which the model is sure of another class than the mask's.

    Args:
        target: class ids.
        probabilities: of the classes.
        confident: (K,) probability from which the model is sure of a class.
        depth: regions have a pixel at least this far inside. Thinner ones are uncertain boundaries.
    """
    ndimage = import_extra("scipy.ndimage", FEATURE)
    prediction = probabilities.argmax(0)
    highest = probabilities.max(0)
    differs = (prediction != target) & (target != IGNORE_INDEX)
    # The rim of an object that is missing is not sure: regions are of all pixels that differ, and
    # have a core that is sure.
    inner = ndimage.distance_transform_edt(differs) >= depth
    core = inner & (highest >= confident[prediction])
    regions = []
    if not core.any():
        return []
    near = ndimage.distance_transform_edt(~core) <= depth
    labels, _ = ndimage.label(differs & near)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        pixels = labels[box] == number
        if not core[box][pixels].any():
            continue
        one, other = prediction[box][pixels], target[box][pixels]
        pairs = np.bincount(one * 256 + other, minlength=256)
        predicted, labelled = divmod(int(pairs.argmax()), 256)
        difference = (
            highest[box][pixels]
            - np.take_along_axis(
                probabilities[:, *box], target[box][None].astype(np.intp) % len(probabilities), 0
            )[0][pixels]
        )
        regions.append(
            Region(pixels, box, labelled, predicted, int(pixels.sum()), float(difference.mean()))
        )
    return regions


def object_sizes(target: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the area of the largest connected component of each class, (K,); NaN without."""
    ndimage = import_extra("scipy.ndimage", FEATURE)
    sizes = np.full(num_classes, np.nan)
    for one in range(num_classes):
        labels, count = ndimage.label(target == one)
        if count:
            sizes[one] = np.bincount(labels.ravel())[1:].max()
    return sizes
