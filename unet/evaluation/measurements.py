"""What is measured in each image, and what it amounts to over all of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet.data.classes import IGNORE_INDEX
from unet.data.label_images import connected_components
from unet.metrics.boundary import boundary_f1, boundary_measures
from unet.metrics.confusion import confusion_matrix, score_values, scores, spread
from unet.metrics.instances import IOU_THRESHOLDS, average_precision
from unet.metrics.isbi2012 import MembraneScores, membrane_scores
from unet.metrics.precision_recall import Curve

OBJECT_MEASURES = (
    *(field.name for field in fields(MembraneScores)),
    "object_average_precision",
    "object_average_precision_at_iou_0.50",
)
"""Of each image, by name: those that are shown."""

OBJECT_THRESHOLDS = tuple(i / 20 for i in range(1, 20))
"""Of the second of two classes' probability, at which objects are measured if asked for."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to measure beside confusion matrices.

    Args:
        boundary_distance: in pixels, of boundary F1; None for neither that nor Hausdorff distances.
        objects: the class whose connected parts are objects; None for no measures of objects.
        labelled: whether the target's objects are those of label images instead.
    """

    boundary_distance: float | None = None
    objects: int | None = None
    labelled: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageMeasurements:
    """What was measured in one image; None for what was not asked for.

    Args:
        size: (height, width).
        matrix: (K, K) int64.
        boundary: (K, 4) int64, see `boundary_measures`.
        hausdorff: 95th percentile of each class, in pixels.
        objects: the measures of objects by name.
        at_thresholds: likewise, of the masks at each threshold; {} if not asked for.
    """

    size: tuple[int, int]
    matrix: Tensor
    boundary: np.ndarray | None
    hausdorff: list[float] | None
    objects: dict[str, float] | None
    at_thresholds: dict[float, dict[str, float]]


def measure(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    measures: Measures,
    thresholded: Callable[[float], np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> ImageMeasurements:
    """Measure one image; pixels that the target ignores are not counted.

    Args:
        prediction: class ids (H, W).
        target: class ids (H, W).
        num_classes: K.
        measures: what to measure.
        thresholded: what gives the class ids (H, W) at a threshold, to measure the objects at
            each of `OBJECT_THRESHOLDS`, too; None for none.
        labels: the target's objects, a label image (H, W); only their pixels of the class count.
            None for the connected parts of the class.
    """
    found, truth = prediction.numpy(), target.numpy()
    boundary, hausdorff, objects, at_thresholds = None, None, None, {}
    if measures.boundary_distance is not None:
        boundary, hausdorff = boundary_measures(
            found, truth, num_classes, measures.boundary_distance
        )
    if measures.objects is not None:
        target_mask, counted = truth == measures.objects, truth != IGNORE_INDEX
        true_objects = _true_objects(target_mask, counted, labels)
        objects = _measure_objects(found == measures.objects, target_mask, true_objects, counted)
        if thresholded is not None:
            at_thresholds = {
                threshold: _measure_objects(
                    thresholded(threshold) == measures.objects, target_mask, true_objects, counted
                )
                for threshold in OBJECT_THRESHOLDS
            }
    return ImageMeasurements(
        size=(target.shape[0], target.shape[1]),
        matrix=confusion_matrix(prediction, target, num_classes),
        boundary=boundary,
        hausdorff=hausdorff,
        objects=objects,
        at_thresholds=at_thresholds,
    )


def _true_objects(target: np.ndarray, counted: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The objects as a label image: the parts of the mask, or what is given."""
    if labels is None:
        return connected_components(target)
    objects = np.where(target, labels, 0)
    if counted.all():
        return objects
    # As of the prediction, nothing hangs together through ignored pixels: an object that lies
    # beside some may be parted by them.
    near = np.zeros_like(counted)
    near[1:] |= ~counted[:-1]
    near[:-1] |= ~counted[1:]
    near[:, 1:] |= ~counted[:, :-1]
    near[:, :-1] |= ~counted[:, 1:]
    beside = np.isin(objects, np.unique(objects[near]))
    parts = connected_components(np.where(beside, objects, 0))
    return np.where(parts > 0, parts + objects.max(), objects)


def _measure_objects(
    prediction: np.ndarray, target: np.ndarray, true_objects: np.ndarray, counted: np.ndarray
) -> dict[str, float]:
    # Cut before it is labelled: nothing hangs together through ignored pixels.
    precisions = average_precision(connected_components(prediction & counted), true_objects)
    return {
        **asdict(membrane_scores(prediction, target, counted, true_objects)),
        "object_average_precision": sum(precisions) / len(precisions),
        **{
            f"object_average_precision_at_iou_{threshold:.2f}": precision
            for threshold, precision in zip(IOU_THRESHOLDS, precisions, strict=True)
        },
    }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the measurements of all images amount to.

    Args:
        names: of the classes.
        measures: what was measured.
        matrix: (K, K) int64, of all pixels.
        overall: each score over the whole set by name, a number or, for each class, a list; those
            of `Scores`, and boundary F1 from the counts of all images. NaN where there is none.
        columns: each score of each image by name, (N,) or, for each class, (N, K); likewise.
        sizes: (height, width) of each image.
        curve: of the foreground's probability; None if not asked for.
        at_thresholds: at each threshold each of `OBJECT_MEASURES`, the mean over the images that
            have it; {} if not asked for.
    """

    names: tuple[str, ...]
    measures: Measures
    matrix: Tensor
    overall: dict[str, Any]
    columns: dict[str, Tensor]
    sizes: list[tuple[int, int]]
    curve: Curve | None
    at_thresholds: dict[float, dict[str, float]]

    @property
    def ranking(self) -> list[int]:
        """The images that have a mean IoU, from the worst to the best."""
        values = self.columns["mean_iou"].tolist()
        return sorted((i for i, x in enumerate(values) if x == x), key=lambda i: values[i])

    @property
    def absent(self) -> list[str]:
        """The classes in neither target nor prediction, which have no score."""
        both = zip(self.names, self.overall["iou"], strict=True)
        return [name for name, iou in both if math.isnan(iou)]

    def over_images(self, name: str) -> tuple[Any, Any, Any]:
        """Return a column's mean, sample standard deviation, and number of images without it."""
        mean, std, without = spread(self.columns[name])
        return mean.tolist(), std.tolist(), without.tolist()


def summarize(
    images: Sequence[ImageMeasurements],
    names: Sequence[str],
    measures: Measures,
    curve: Curve | None = None,
) -> Summary:
    """Add up the measurements of images, at least one."""
    matrices = torch.stack([image.matrix for image in images])
    matrix = matrices.sum(0)
    overall, columns = asdict(scores(matrix)), score_values(matrices)
    boundaries = [image.boundary for image in images if image.boundary is not None]
    hausdorff = [image.hausdorff for image in images if image.hausdorff is not None]
    objects = [image.objects for image in images if image.objects is not None]
    if boundaries:
        f1 = boundary_f1(np.sum(boundaries, axis=0))
        overall["boundary_f1"] = f1
        overall["mean_boundary_f1"] = _mean(f1)
        overall["mean_boundary_f1_foreground"] = _mean(f1[1:])
        for name, rows in (
            ("boundary_f1", [boundary_f1(counts) for counts in boundaries]),
            ("hausdorff95", hausdorff),
        ):
            values = torch.tensor(rows, dtype=torch.float64)
            columns[name] = values
            columns[f"mean_{name}"] = values.nanmean(1)
            columns[f"mean_{name}_foreground"] = values[:, 1:].nanmean(1)
    for name in objects[0] if objects else ():
        columns[name] = torch.tensor([row[name] for row in objects], dtype=torch.float64)
    return Summary(
        names=tuple(names),
        measures=measures,
        matrix=matrix,
        overall=overall,
        columns=columns,
        sizes=[image.size for image in images],
        curve=curve,
        at_thresholds={
            threshold: {
                name: _mean([image.at_thresholds[threshold][name] for image in images])
                for name in OBJECT_MEASURES
            }
            for threshold in images[0].at_thresholds
        },
    )


def _mean(values: Sequence[float]) -> float:
    having = [value for value in values if not math.isnan(value)]
    return sum(having) / len(having) if having else float("nan")


class BestThreshold(NamedTuple):
    """Where a measure of objects is best, its mean over images there, at 0.5, and the price."""

    threshold: float
    score: float
    score_at_half: float
    pixel_error: float
    """At the threshold."""


def best_thresholds(summary: Summary) -> dict[str, BestThreshold]:
    """Find the best threshold of each measure of objects, by name; none for one without a score.

    The lowest of errors, the highest of scores, of equal ones that nearest to 0.5.
    """
    result = {}
    for name in OBJECT_MEASURES:
        sign = -1 if name.endswith("_error") else 1
        ranked = [
            (sign * means[name], -abs(threshold - 0.5), threshold)
            for threshold, means in summary.at_thresholds.items()
            if not math.isnan(means[name])
        ]
        if ranked:
            threshold = max(ranked)[-1]
            there = summary.at_thresholds[threshold]
            result[name] = BestThreshold(
                threshold, there[name], summary.at_thresholds[0.5][name], there["pixel_error"]
            )
    return result


class Row(NamedTuple):
    """A line of a table of scores."""

    name: str
    cells: tuple[str, ...]


def score_head(summary: Summary) -> Row:
    """Return the heads of the columns of `score_rows`."""
    boundary = () if summary.measures.boundary_distance is None else ("boundary F1", "HD95")
    return Row("class", ("IoU", "Dice", "precision", "recall", *boundary))


def score_rows(summary: Summary) -> list[Row]:
    """Lay out the scores as text: a row for each class, then one for each way to average."""
    overall = summary.overall
    kinds = ["iou", "dice", "precision", "recall"]
    if summary.measures.boundary_distance is not None:
        kinds += ["boundary_f1", "hausdorff95"]
    by_class = {kind: overall.get(kind) or summary.over_images(kind)[0] for kind in kinds}
    rows = [
        Row(name, tuple(show_score(kind, by_class[kind][i]) for kind in kinds))
        for i, name in enumerate(summary.names)
    ]
    # With the background, what is predicted wrongly is missed as well: all three are one.
    micro = dict.fromkeys(("dice", "precision", "recall"), overall["pixel_accuracy"])
    over_images = {kind: summary.over_images(f"mean_{kind}") for kind in kinds}
    without = f"without {summary.names[0]}"
    for name, values in (
        ("mean", [overall.get(f"mean_{kind}") for kind in kinds]),
        (f"mean {without}", [overall.get(f"mean_{kind}_foreground") for kind in kinds]),
        ("micro", [overall.get(f"micro_{kind}", micro.get(kind)) for kind in kinds]),
        (f"micro {without}", [overall.get(f"micro_{kind}_foreground") for kind in kinds]),
        ("frequency-weighted", [overall.get(f"frequency_weighted_{kind}") for kind in kinds]),
        ("mean over images", [over_images[kind][0] for kind in kinds]),
        ("  their spread +-", [over_images[kind][1] for kind in kinds]),
    ):
        rows.append(Row(name, tuple(map(show_score, kinds, values))))
    return rows


def object_rows(summary: Summary) -> list[Row]:
    """Lay out the measures of objects as text: mean, spread and images without; none if not asked.

    The average precision at other single IoUs than 0.5 is left out.
    """
    return [
        Row(
            _title(name),
            (show_score(name, mean), show_score(name, std), str(without)),
        )
        for name in OBJECT_MEASURES
        if name in summary.columns
        for mean, std, without in [summary.over_images(name)]
    ]


def object_title(summary: Summary) -> str:
    """Say which objects are measured."""
    assert summary.measures.objects is not None  # there would be nothing to say
    name = summary.names[summary.measures.objects]
    if summary.measures.labelled:
        return f"Parts of the class {name} against the objects of label images"
    return f"Parts of the class {name} as objects"


THRESHOLD_HEAD = Row("object measures", ("at 0.50", "best", "at", "pixel error there"))
"""Of the columns of `threshold_rows`."""


def threshold_rows(summary: Summary) -> list[Row]:
    """Lay out the best thresholds of the measures of objects as text; none if not asked for."""
    return [
        Row(
            _title(name),
            (
                show_score(name, best.score_at_half),
                show_score(name, best.score),
                f"{best.threshold:.2f}",
                show_score(name, best.pixel_error),
            ),
        )
        for name, best in best_thresholds(summary).items()
    ]


def _title(name: str) -> str:
    return name.replace("_", " ").replace("iou", "IoU")


def show_score(kind: str, score: float | None) -> str:
    """Return a score as text: nothing where there is none of the kind, - where it is NaN."""
    if score is None:
        return ""
    if math.isnan(score):
        return "-"
    return f"{score:.2f}" if kind == "hausdorff95" else f"{score:.4f}"


def rules(summary: Summary) -> dict[str, str]:
    """Say how each group of scores is averaged, a sentence or two each, by the group's name."""
    background, distance = summary.names[0], summary.measures.boundary_distance
    result = {
        "what counts": "Pixels that the target ignores count nowhere. A class in neither target "
        "nor prediction has no score (null, or -) and is left out of means, never taken for 0 or "
        "1; classes_without_a_score. A class in only one of the two has IoU, Dice, precision and "
        "recall 0, also the precision of a class that is never predicted and the recall of one "
        "that is not in the target.",
        "class": "All pixels of all images are added up in one confusion matrix; IoU, Dice, "
        "precision and recall of each class are computed from that.",
        "mean": "The mean of these over the classes that have a score, all classes alike, "
        f"{background}, the first, included; in metrics.json mean_*.",
        f"mean without {background}": "The same over the classes but the first, which mostly is "
        "the background; mean_*_foreground.",
        "micro": "Pixels are summed over the classes before they are divided, so that large "
        "classes count for more; micro Dice, precision and recall are the pixel accuracy, the "
        "share of the counted pixels that are right; micro_* and pixel_accuracy.",
        f"micro without {background}": "The same of sums over the classes but the first; "
        "micro_*_foreground.",
        "frequency-weighted": "The mean over the classes, each weighted by its pixels in the "
        "target; frequency_weighted_*.",
        "mean over images": "The mean over the classes is computed for each image by itself, from "
        "its own confusion matrix, then averaged over the images that have it; the spread is the "
        "sample standard deviation; per_image, which says of each score how many images are "
        "without.",
    }
    if distance is None:
        result["boundary F1, HD95"] = "Not computed: needs unet[metrics]."
    else:
        result["boundary F1"] = (
            "Precision is the share of the prediction's boundary pixels of a class within "
            f"{distance:g} pixels of one of the target's, recall that of the target's near the "
            "prediction's, F1 their harmonic mean, 0 where only one side has such pixels, none "
            "where neither has; of a class from the counts of all images, means over the classes "
            "as above."
        )
        result["HD95"] = (
            "The 95th percentile of the distances, in pixels, from the boundary pixels of one side "
            "to the nearest of the other, the larger of the two ways; of each image, then the mean "
            "over those in which both sides have such pixels (where only one has, boundary F1 "
            "tells, not this); hausdorff95."
        )
    if summary.measures.objects is not None:
        name = summary.names[summary.measures.objects]
        labelled = (
            " The target's objects are those that label images number, their pixels of that class; "
            "pixel and warping error are those of the masks, in which objects that touch are one."
        )
        result["objects"] = (
            f"Objects are the parts of the class {name} that hang together by edges (what touches "
            "is one object), but not through ignored pixels."
            f"{labelled if summary.measures.labelled else ''} The measures of ISBI 2012 (Rand and "
            "information scores with the prediction's borders thinned) are computed for each "
            "image, then averaged over the images that have them: Rand and information scores need "
            "an object in the target."
        )
        result["average precision of objects"] = (
            "TP / (TP + FP + FN) of the objects, found if IoU is above a threshold, mean over the "
            f"thresholds {IOU_THRESHOLDS[0]:.2f} to {IOU_THRESHOLDS[-1]:.2f} in steps of 0.05, of "
            "each image, then the mean over images; none where neither side has an object."
        )
    if summary.curve is not None:
        result["thresholds"] = (
            f"A pixel is {summary.names[1]} if the probability of that is at least the threshold, "
            "of which there are 256; all pixels of all images together. Average precision is the "
            "area under the steps of precision over recall, not interpolated. There is no "
            "precision at a threshold that no pixel reaches. With cells as the foreground, 1 - "
            "best F1 is the pixel error that the scripts of ISBI 2012 compute."
        )
    if summary.at_thresholds:
        result["thresholds of objects"] = (
            f"The same measures of objects where a pixel is {summary.names[1]} if the probability "
            f"of that is at least the threshold, {OBJECT_THRESHOLDS[0]:.2f} to "
            f"{OBJECT_THRESHOLDS[-1]:.2f} in steps of 0.05: of the masks that 'unet predict "
            "--threshold P' writes. At each the mean over the images that have the measure; best "
            "is the lowest of errors, the highest of scores, of equal ones that nearest to 0.5. A "
            "threshold chosen on the images that it is scored on flatters: choose it on some, "
            "publish its score on others."
        )
    return result
