"""Add up the measurements of images: the scores of an evaluation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet.evaluation.measure import OBJECT_MEASURES, ImageMeasurements, Measures
from unet.metrics.boundary import boundary_f1
from unet.metrics.confusion import score_values, scores, spread
from unet.metrics.precision_recall import Curve, precision_recall


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary(Mapping[str, Any]):
    """The scores of a model on N images of K classes; NaN where there is no score.

    `summary["mean_iou"]` is a score over all pixels of all images, `summary["iou"]` a list of one
    for each class: those of `unet.metrics.confusion.Scores`, boundary_f1, mean_boundary_f1 and
    mean_boundary_f1_foreground. `summary.over_images("mean_iou")` averages over the images.
    """

    title: str
    stems: tuple[str, ...]
    measures: Measures
    matrix: Tensor
    """Confusion matrix (K, K) int64 of all pixels."""
    overall: Mapping[str, Any]
    """Scores over all pixels by name."""
    columns: Mapping[str, Tensor]
    """Scores of each image by name: (N,) or, if each class has one, (N, K)."""
    sizes: Sequence[tuple[int, int]]
    curve: Curve | None
    """Over the thresholds of the second class's probability."""
    at_thresholds: Mapping[float, Mapping[str, float]]
    """Means over images by threshold and measure of objects."""

    def __getitem__(self, name: str) -> Any:
        return self.overall[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.overall)

    def __len__(self) -> int:
        return len(self.overall)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, the background first."""
        return self.measures.class_names

    @property
    def ranking(self) -> list[int]:
        """Indices of the images that have a mean IoU, the worst first."""
        values = self.columns["mean_iou"].tolist()
        return sorted((i for i, x in enumerate(values) if x == x), key=lambda i: values[i])

    @property
    def absent(self) -> list[str]:
        """The classes in neither target nor prediction, which have no score."""
        both = zip(self.class_names, self["iou"], strict=True)
        return [name for name, iou in both if math.isnan(iou)]

    def over_images(self, name: str) -> tuple[Any, Any, Any]:
        """Return mean and sample standard deviation of a column, and the number of NaN in it."""
        mean, std, without = spread(self.columns[name])
        return mean.tolist(), std.tolist(), without.tolist()


def summarize(
    images: Sequence[ImageMeasurements],
    measures: Measures,
    stems: Sequence[str] = (),
    title: str = "",
) -> Summary:
    """Add up the measurements of at least one image."""
    matrices = torch.stack([image.matrix for image in images])
    matrix = matrices.sum(0)
    overall, columns = asdict(scores(matrix)), score_values(matrices)
    for name, first in images[0].values.items():
        values = torch.tensor([image.values[name] for image in images], dtype=torch.float64)
        columns[name] = values
        if isinstance(first, list):
            columns[f"mean_{name}"] = values.nanmean(1)
            columns[f"mean_{name}_foreground"] = values[:, 1:].nanmean(1)
    boundaries = [image.boundary for image in images if image.boundary is not None]
    if boundaries:
        f1 = boundary_f1(np.sum(boundaries, axis=0))
        overall["boundary_f1"] = f1
        overall["mean_boundary_f1"] = _mean(f1)
        overall["mean_boundary_f1_foreground"] = _mean(f1[1:])
    counts = [image.probability for image in images if image.probability is not None]
    return Summary(
        title=title,
        stems=tuple(stems),
        measures=measures,
        matrix=matrix,
        overall=overall,
        columns=columns,
        sizes=[image.size for image in images],
        curve=precision_recall(np.sum(counts, axis=0)) if counts else None,
        at_thresholds={
            threshold: {
                name: _mean([image.at_thresholds[threshold][name] for image in images])
                for name in OBJECT_MEASURES
            }
            for threshold in images[0].at_thresholds
        },
    )


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else float("nan")


class BestThreshold(NamedTuple):
    """The best threshold of a measure of objects: means over images at it and at 0.5."""

    threshold: float
    score: float
    score_at_half: float
    pixel_error: float


def best_thresholds(summary: Summary) -> dict[str, BestThreshold]:
    """Find the lowest error or highest score of each measure; of equal ones, nearest to 0.5."""
    result = {}
    for name in OBJECT_MEASURES:
        sign = -1 if name.endswith("_error") else 1
        scored = {t: means[name] for t, means in summary.at_thresholds.items()}
        ranked = [(sign * x, -abs(t - 0.5), t) for t, x in scored.items() if not math.isnan(x)]
        if ranked:
            best = max(ranked)[-1]
            pixel_error = summary.at_thresholds[best]["pixel_error"]
            result[name] = BestThreshold(best, scored[best], scored[0.5], pixel_error)
    return result
