"""From out-of-fold predictions to a score and a reason for each mask."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from unet.data.classes import IGNORE_INDEX
from unet.evaluation.folds import Predicted
from unet.metrics.calibration import fit_temperature
from unet.metrics.label_errors import (
    WIDTHS,
    Region,
    boundary_length,
    coarse,
    disputed_regions,
    object_sizes,
    pixel_costs,
    shift_costs,
    width_costs,
)
from unet.runtime.progress import show_progress
from unet.runtime.text import plural

SUSPECT = 1.0
"""Score from which a mask is suspected."""
_SAMPLES = 4000  # pixels of each image, to calibrate the probabilities
_COMMON = 3.0  # times the upper quartile
_FLOORS = np.array([0.08, 0.12, 0.15, 0.015])  # of shift, width, exchange and region
_REGION = 3


def _logarithms() -> np.ndarray:
    """Of p for 255 p from 0 to 255."""
    return np.log(np.maximum(np.arange(256), 0.5) / 255)


class LabelNoise(NamedTuple):
    """What the disagreement on all images says of the probabilities and of the masks."""

    temperature: float
    thresholds: np.ndarray  # (K,) mean probability of a class where the mask has it
    fractions: np.ndarray  # (K, K) estimated fraction of a class of the masks that is another class

    def calibrate(self, p: np.ndarray) -> np.ndarray:
        """Calibrate probabilities 255 p (K, ...) uint8; returns float32."""
        table = np.exp(_logarithms() / self.temperature)
        scaled = table.astype(np.float32)[p]
        calibrated: np.ndarray = scaled / scaled.sum(0)
        return calibrated


@dataclass
class Evidence:
    """How well a mask and changed masks fit the prediction; costs per pixel of boundary."""

    shifts: np.ndarray  # (2 r + 1, 2 r + 1), of `shift_costs`
    widths: np.ndarray  # (K, len(WIDTHS)), of `width_costs`
    maps: tuple[np.ndarray, np.ndarray]  # `coarse` of mask and prediction
    sizes: np.ndarray  # (K,) typical size of the objects of each class, NaN without
    cost: float
    length: float  # pixels of boundary
    regions: list[Region] = field(default_factory=list)

    @property
    def shift(self) -> tuple[int, int]:
        """The best (dy, dx)."""
        r = len(self.shifts) // 2
        y, x = np.unravel_index(self.shifts.argmin(), self.shifts.shape)
        return int(y) - r, int(x) - r

    @property
    def width(self) -> np.ndarray:
        """Pixels by which each class is too wide, (K,); NaN where that is unknown."""
        known = np.nan_to_num(self.widths, nan=np.inf)
        best = -np.array(WIDTHS, float)[known.argmin(1)]
        return np.where(np.isnan(self.widths[:, 0]), np.nan, best)


class Verdict(NamedTuple):
    """The score of a mask, above `SUSPECT` if it is suspected, and the reason in words."""

    score: float
    reason: str  # empty if there is no evidence
    shift: tuple[int, int]
    widths: list[float]  # pixels by which each class except the first is too wide; NaN without
    fit: float  # correlation with the prediction
    cost: float  # wrong pixels that the model expects, per pixel of boundary
    of_regions: bool  # the reason concerns single regions, not the whole mask


def estimate_noise(images: Sequence[Predicted]) -> LabelNoise:
    """Fit a temperature to the masks, and count the pixels whose class the model is sure of.

    Source: Northcutt, Jiang and Chuang 2021, "Confident learning", JAIR 70: thresholds and noise.
    """
    rng = np.random.default_rng(0)
    samples, labels = [], []
    for image in images:
        p, target = image.arrays()
        counted = np.flatnonzero(target.ravel() != IGNORE_INDEX)
        chosen = rng.choice(counted, min(_SAMPLES, len(counted)), replace=False)
        samples.append(p.reshape(len(p), -1)[:, chosen])
        labels.append(target.ravel()[chosen])
    p, y = np.concatenate(samples, 1), np.concatenate(labels).astype(np.intp)
    k = len(p)
    logits = torch.from_numpy(_logarithms().astype(np.float32)[p].T)
    temperature = fit_temperature(logits, torch.from_numpy(y))
    q = LabelNoise(temperature, np.empty(0), np.empty(0)).calibrate(p)
    thresholds = np.array([q[i, y == i].mean() if (y == i).any() else 1.0 for i in range(k)])
    sure = q >= thresholds[:, None]
    chosen = np.where(sure, q, 0).argmax(0)
    is_sure = sure.any(0)
    joint = np.bincount(y[is_sure] * k + chosen[is_sure], minlength=k * k).reshape(k, k)
    with np.errstate(invalid="ignore"):
        fractions = joint / joint.sum(1, keepdims=True)
    return LabelNoise(temperature, thresholds, fractions)


def collect_evidence(images: Sequence[Predicted], noise: LabelNoise) -> list[Evidence]:
    """Compare every mask, changed in many ways, with its prediction."""
    found = []
    for image in show_progress(images, "compare", "mask"):
        p, target = image.arrays()
        q = noise.calibrate(p)
        cost = float(pixel_costs(target, q).sum())
        prediction = q.argmax(0).astype(np.uint8)
        # An image without objects still has some boundary that could be wrong.
        length = (boundary_length(target) + boundary_length(prediction)) / 2
        length = max(length, target.size**0.5)
        masks = np.stack([target == i for i in range(len(q))]).astype(np.float32)
        found.append(
            Evidence(
                shifts=shift_costs(target, q) / length,
                widths=width_costs(target, q) / length,
                maps=(coarse(masks), coarse(q)),
                sizes=object_sizes(target, len(q)),
                cost=max(cost / length, 1e-6),
                length=length,
            )
        )
    # Thinner disagreements are within the typical uncertainty of the boundaries of this set.
    depth = max(2.0, 1 + float(np.median([one.cost for one in found])))
    for image, one in zip(images, found, strict=True):
        p, target = image.arrays()
        one.regions = disputed_regions(target, noise.calibrate(p), noise.thresholds, depth)
    return found


def judge(found: Sequence[Evidence], names: Sequence[str], stems: Sequence[str]) -> list[Verdict]:
    """Score every mask by the strongest evidence against it, relative to the rest of the set.

    Evidence is the fraction of a mask's cost that one change of the mask removes. It is divided by
    what is common in the set: `_COMMON` times the upper quartile, or the floor of its type.
    """
    masks, predictions = (np.stack(maps) for maps in zip(*(one.maps for one in found), strict=True))
    # Masks of one class, such as those without objects, have no shift and fit nothing.
    varied = np.asarray(masks.any(1))
    drawn = varied if varied.any() else ~varied
    shifts = np.array([one.shift for one in found])
    shift = np.median(shifts[drawn], axis=0).round().astype(int)
    shifts = np.where(varied[:, None], shifts - shift, 0)
    width = _medians([one.width for one in found])
    fits = masks @ predictions.T  # (N, N), of the mask of a row to the prediction of a column
    sizes = _medians([one.sizes for one in found])
    # Of images on which the model is worse than usual, its regions count less.
    own = np.diagonal(fits).clip(1e-3)
    fit = np.where(varied, (own / np.median(own[drawn])).clip(max=1.0), 1.0)
    claims = [
        [
            _claim_shift(one, shift),
            _claim_width(one, width, names),
            _claim_exchange(fits, i, stems),
            _claim_region(one, sizes, fit[i], names),
        ]
        for i, one in enumerate(found)
    ]
    evidence = np.array([[claim.evidence for claim in row] for row in claims])
    common = np.maximum(_COMMON * np.quantile(evidence[drawn], 0.75, axis=0), _FLOORS)
    scores = evidence / common
    return [
        Verdict(
            score=float(row.max()),
            reason=claims[i][int(row.argmax())].reason,
            shift=(int(shifts[i, 0]), int(shifts[i, 1])),
            widths=[float(wide) for wide in one.width[1:] - width[1:] + 0.0],  # no -0.0
            fit=float(fits[i, i]),
            cost=one.cost,
            of_regions=int(row.argmax()) == _REGION,
        )
        for i, (one, row) in enumerate(zip(found, scores, strict=True))
    ]


def _medians(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Median of each column of the values that are not NaN, if any."""
    columns = [column[~np.isnan(column)] for column in np.stack(rows).T]
    return np.array([np.median(column) if len(column) else np.nan for column in columns])


class _Claim(NamedTuple):
    evidence: float  # fraction of the cost
    reason: str


def _claim_shift(one: Evidence, typical: np.ndarray) -> _Claim:
    r = len(one.shifts) // 2
    dy, dx = (int(a) - int(b) for a, b in zip(one.shift, typical, strict=True))
    if (dy, dx) == (0, 0) or not one.maps[0].any():
        return _Claim(0.0, "")
    usual = one.shifts[tuple((typical + r).clip(0, 2 * r))]
    weight = min(1.0, max(abs(dy), abs(dx)) / 2)
    evidence = weight * float(usual - one.shifts.min()) / one.cost
    return _Claim(evidence, f"shifted by ({dy}, {dx})")


def _claim_width(one: Evidence, typical: np.ndarray, names: Sequence[str]) -> _Claim:
    best = _Claim(0.0, "")
    for i in np.flatnonzero(~np.isnan(one.width)).tolist():
        wider = int(one.width[i] - round(typical[i]))
        usual = one.widths[i, WIDTHS.index(round(typical[i]))]
        reason = f"{names[i]}: {'wider' if wider > 0 else 'narrower'} by {abs(wider)}"
        gain = float(usual - one.widths[i].min())
        best = max(best, _Claim(min(1.0, abs(wider) / 2) * gain / one.cost, reason))
    return best


def _claim_exchange(fits: np.ndarray, i: int, stems: Sequence[str]) -> _Claim:
    others = np.where(np.arange(len(fits)) == i, -1.0, fits[i])
    better = float(others.max() - fits[i, i])
    return _Claim(max(0.0, better), f"mask of another image, such as {stems[int(others.argmax())]}")


def _claim_region(one: Evidence, sizes: np.ndarray, fit: float, names: Sequence[str]) -> _Claim:
    best = _Claim(0.0, "")
    for region in one.regions:
        target, prediction = names[region.target], names[region.prediction]
        object_class = region.prediction if region.target == 0 else region.target
        # Of a region that is larger than objects are, the model has rather failed.
        largest = float(np.nan_to_num(sizes[object_class], nan=region.area))
        if region.target == 0:
            reason = f"object missing: {prediction}"
        elif region.prediction == 0:
            reason = f"object invented: {target}"
        else:
            reason = f"{target} for {prediction}"
        reason += f", {plural(region.area, 'pixel')}"
        weight = region.area * region.confidence * min(1.0, largest / region.area)
        best = max(best, _Claim(weight * fit**2 / (one.cost * one.length), reason))
    return best
