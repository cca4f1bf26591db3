"""How far probabilities can be trusted: reliability, temperature, and promises about misses."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.data.classes import IGNORE_INDEX

NUM_BINS = 15
"""Of equal width from 0 to 1, as Guo et al. 2017 have them."""

_IMAGES_PER_EXCEPTION = 20
"""A promise holds for 95 % of the images: one of so many may be an exception."""

FEWEST_IMAGES = _IMAGES_PER_EXCEPTION - 1
"""With fewer images, nothing can be promised for 95 % of all images."""

_LARGEST_TEMPERATURE = 100.0


def reliability_counts(probabilities: Tensor, target: Tensor) -> np.ndarray:
    """Compare probabilities (K, H, W) with a target (H, W) of class ids.

    Returns (K + 1, 3, NUM_BINS) float64, which can be added over images: for each class, and for
    the most probable class of each pixel, by probability, the number of pixels, the sum of their
    probabilities, and how many of them are of the class.
    """
    counted = target != IGNORE_INDEX
    scores, truth = probabilities[:, counted], target[counted].long()
    classes = torch.arange(len(scores))[:, None]
    best, chosen = scores.max(0)
    predicted = torch.cat([scores, best[None]]).double()
    right = torch.cat([truth == classes, (truth == chosen)[None]]).double()
    bins = (predicted * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    rows, size = len(predicted), len(predicted) * NUM_BINS
    bins = (bins + torch.arange(rows)[:, None] * NUM_BINS).flatten()
    weights = torch.ones_like(predicted), predicted, right
    columns = [bins.bincount(one.flatten(), size).view(rows, NUM_BINS) for one in weights]
    counts: np.ndarray = torch.stack(columns, dim=1).numpy()
    return counts


def calibration_errors(counts: np.ndarray) -> list[float]:
    """Compute the expected calibration error of each row of `reliability_counts`; NaN for none.

    Source: Guo, Pleiss, Sun and Weinberger 2017, arXiv 1706.04599, equation 3.
    """
    pixels, probabilities, right = counts.transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        errors = np.abs(right - probabilities).sum(1) / pixels.sum(1)
    result: list[float] = errors.tolist()
    return result


def reliability_curve(counts: np.ndarray) -> dict[str, list[float]]:
    """Turn a row of `reliability_counts` (3, NUM_BINS) into a curve; NaN in bins without pixels.

    Returns for each bin the number of pixels, their mean probability, and the fraction of them that
    are of the class.
    """
    with np.errstate(invalid="ignore"):
        means = counts[1:] / counts[0]
    columns = (counts[0].astype(np.int64), *means)
    names = ("pixels", "mean_probability", "fraction")
    return {name: column.tolist() for name, column in zip(names, columns, strict=True)}


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Find the number that logits (N, K) are best divided by, from 0.01 to 100.

    It minimises the cross entropy with the class ids `target` (N,).

    Source: Guo, Pleiss, Sun and Weinberger 2017, section 4.2.
    """
    bound = float(np.log(_LARGEST_TEMPERATURE))
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        temperature = log_temperature.clamp(-bound, bound).exp()
        loss = F.cross_entropy(logits / temperature, target)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().clamp(-bound, bound).exp())


def largest_threshold(probability: Tensor, max_missed: float) -> float:
    """Return the largest threshold that misses at most a fraction of the pixels of a class.

    `probability` (N,) is that of the class at its N pixels in an image. A pixel is missed if it is
    below the threshold.
    """
    most = int(max_missed * len(probability))
    return float(probability.kthvalue(most + 1).values)


def promised_threshold(thresholds: list[float]) -> float | None:
    """Return the threshold that keeps a promise for 95 % of new images.

    `thresholds` are the largest ones that keep it in N images. In the order of all N + 1 images, a
    new one is equally likely in each place, so that it is among the k lowest, which a threshold of
    the k-th fails to keep, with a probability of at most k / (N + 1). None if N is below
    `FEWEST_IMAGES`.

    Source: split conformal prediction, Papadopoulos et al. 2002; Angelopoulos and Bates 2021,
    arXiv 2107.07511.
    """
    exceptions = (len(thresholds) + 1) // _IMAGES_PER_EXCEPTION
    if exceptions == 0:
        return None
    # Rounded down, so that the rounding of probabilities does not matter.
    return int(sorted(thresholds)[exceptions - 1] * 1e6) / 1e6
