"""Add up the measurements of images: the scores of an evaluation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet.evaluation.measure import OBJECT_MEASURES, ImageMeasurements, Measures, rules
from unet.evaluation.tables import describe, object_rows, score_rows, show_score, to_html
from unet.metrics.boundary import boundary_f1
from unet.metrics.calibration import calibration_errors, reliability_curve
from unet.metrics.confusion import score_values, scores, spread
from unet.metrics.precision_recall import Curve, precision_recall


class BestThreshold(NamedTuple):
    """The best threshold of a measure of objects: means over images at it and at 0.5."""

    threshold: float
    score: float
    score_at_half: float
    pixel_error: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Summary(Mapping[str, Any]):
    """The scores of a model on N images of K classes; NaN where there is no score.

    `summary.mean_iou` or `summary["mean_iou"]` is a score over all pixels of all images,
    `summary.iou` a list of one for each class: those of `unet.metrics.confusion.Scores`,
    boundary_f1, mean_boundary_f1 and mean_boundary_f1_foreground.
    `summary.over_images("mean_iou")` averages over the images.
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
    reliability: np.ndarray | None
    """Counts (K + 1, 3, NUM_BINS), see `reliability_counts`; None without probabilities."""
    curve: Curve | None
    """Over the thresholds of the second class's probability."""
    at_thresholds: Mapping[float, Mapping[str, float]]
    """Means over images by threshold and measure of objects."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.overall:
            raise KeyError(self._suggest(name))
        return self.overall[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.overall)

    def __len__(self) -> int:
        return len(self.overall)

    def __getattr__(self, name: str) -> Any:
        overall = vars(self).get("overall")  # not there while a copy is made
        if overall is None or name not in overall:
            raise AttributeError(name if overall is None else self._suggest(name))
        return overall[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.overall]

    def __repr__(self) -> str:
        images, classes = len(self.sizes), len(self.class_names)
        scores = ", ".join(f"{name}={self[name]:.4f}" for name in ("mean_iou", "pixel_accuracy"))
        return f"Summary({images=}, {classes=}, {scores})"

    def __str__(self) -> str:
        return f"{self.title}\n\n{describe(self)}"

    def _repr_html_(self) -> str:
        """Show title and scores in a notebook."""
        accuracy = show_score("pixel_accuracy", self["pixel_accuracy"])
        tables = map(to_html, filter(None, (score_rows(self), object_rows(self))))
        return f"<p>{escape(self.title)}; pixel accuracy {accuracy}</p>{''.join(tables)}"

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
        if name not in self.columns:
            raise KeyError(self._suggest(name))
        mean, std, without = spread(self.columns[name])
        return mean.tolist(), std.tolist(), without.tolist()

    @property
    def best_thresholds(self) -> dict[str, BestThreshold]:
        """The lowest error or highest score of each measure; of equal ones, nearest to 0.5."""
        result = {}
        for name in OBJECT_MEASURES:
            sign = -1 if name.endswith("_error") else 1
            scored = {t: means[name] for t, means in self.at_thresholds.items()}
            ranked = [(sign * x, -abs(t - 0.5), t) for t, x in scored.items() if not math.isnan(x)]
            if ranked:
                best = max(ranked)[-1]
                pixel_error = self.at_thresholds[best]["pixel_error"]
                result[name] = BestThreshold(best, scored[best], scored[0.5], pixel_error)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as metrics.json has them; None where there is no score."""
        measures, curve = self.measures, self.curve
        spreads = {name: self.over_images(name) for name in self.columns}
        numbers = {
            "images": list(self.stems),
            "classes": list(self.class_names),
            "rules": rules(measures),
            **self.overall,
            "classes_without_a_score": self.absent,
            "per_image": {
                key: {name: spread[i] for name, spread in spreads.items()}
                for i, key in enumerate(("mean", "std", "images_without"))
            },
            "boundary_tolerance": measures.boundary_tolerance,
            "confusion_matrix": self.matrix.tolist(),
        }
        if self.reliability is not None:
            *by_class, most_probable = map(reliability_curve, self.reliability)
            numbers["reliability"] = {
                "most_probable_class": most_probable,
                "classes": dict(zip(self.class_names, by_class, strict=True)),
            }
        if measures.objects is not None:
            numbers["objects"] = self.class_names[measures.objects]
            numbers["objects_are"] = "label images" if measures.labelled else "connected components"
        if curve is not None:
            best = curve.best
            numbers["threshold"] = {
                "foreground": self.class_names[1],
                "average_precision": curve.average_precision,
                "best_f1": None if best is None else float(curve.f1[best]),
                "best_f1_threshold": None if best is None else float(curve.thresholds[best]),
            }
        if self.at_thresholds:
            numbers["object_thresholds"] = {
                "foreground": self.class_names[1],
                "best": {name: best._asdict() for name, best in self.best_thresholds.items()},
            }
        result: dict[str, Any] = _null_for_nan(numbers)
        return result

    def _suggest(self, name: object) -> str:
        if name in self.columns:
            return f"{name} is a score of each image; take over_images({name!r})"
        near = get_close_matches(str(name), [*self.overall, *self.columns], 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(self.overall)}"
        return f"there is no score {name}; {hint}"


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
    some = [image.reliability for image in images if image.reliability is not None]
    reliability = np.sum(some, axis=0) if some else None
    if reliability is not None:
        *by_class, overall["expected_calibration_error"] = calibration_errors(reliability)
        overall["calibration_error"] = by_class
    counts = [image.probability for image in images if image.probability is not None]
    return Summary(
        title=title,
        stems=tuple(stems),
        measures=measures,
        matrix=matrix,
        overall=overall,
        columns=columns,
        sizes=[image.size for image in images],
        reliability=reliability,
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


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
