"""Measure one image.

To add a measure of each image, write its function in `unet.metrics`, and here add its value to
`measure_image` and its title to `CLASS_MEASURES` or `OBJECT_MEASURES`. rules.yaml explains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from torch import Tensor

from unet.data.classes import IGNORE_INDEX
from unet.data.label_images import connected_components
from unet.inference.tta import choose_classes
from unet.metrics.boundary import boundary_f1, boundary_measures
from unet.metrics.calibration import calibration_errors, reliability_counts
from unet.metrics.confusion import confusion_matrix
from unet.metrics.instances import IOU_THRESHOLDS, average_precision
from unet.metrics.isbi2012 import membrane_scores
from unet.metrics.precision_recall import probability_counts
from unet.runtime.optional import import_extra

CLASS_MEASURES = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "precision",
    "recall": "recall",
    "boundary_f1": "boundary F1",
    "hausdorff95": "HD95",
}
"""The measures of each class that tables show, and their titles."""

OBJECT_MEASURES = {
    "pixel_error": "pixel error",
    "warping_error": "warping error",
    "rand_error": "Rand error",
    "foreground_rand_error": "foreground Rand error",
    "thinned_rand_score": "thinned Rand score",
    "thinned_info_score": "thinned information score",
    "object_average_precision": "average precision",
    "object_average_precision_at_iou_0.50": "average precision at IoU 0.50",
}
"""The measures of objects that tables show, and their titles. `_error` means lower is better."""

OBJECT_THRESHOLDS = tuple(i / 20 for i in range(1, 20))
"""Probabilities of the second of two classes at which objects are measured."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to measure in addition to the confusion matrix (K, K)."""

    class_names: tuple[str, ...]
    boundary_tolerance: float | None = None
    """Pixels; None for no measures of boundaries."""
    objects: int | None = None
    """The class whose connected components are objects; None for no measures of objects."""
    labelled: bool = False
    """Whether label images number the objects of the targets."""
    thresholds: bool = False
    """Whether to measure at thresholds of the second class's probability."""


@dataclass(frozen=True, kw_only=True)
class ImageMeasurements:
    """The measurements of one image; None or empty where `Measures` does not ask for them."""

    size: tuple[int, int]
    matrix: Tensor
    boundary: np.ndarray | None
    """Counts (K, 4), see `boundary_measures`."""
    probability: np.ndarray | None
    """Counts (2, NUM_BINS), see `probability_counts`."""
    reliability: np.ndarray | None
    """Counts (K + 1, 3, NUM_BINS), see `reliability_counts`; None without probabilities."""
    values: Mapping[str, float | list[float]]
    """Measures by name: a number, or a list of K; NaN where there is no score."""
    at_thresholds: Mapping[float, Mapping[str, float]]
    """Measures of objects by threshold and name."""


def measure_image(
    prediction: Tensor,
    target: Tensor,
    measures: Measures,
    probabilities: Tensor | None = None,
    label_image: np.ndarray | None = None,
) -> ImageMeasurements:
    """Measure one image. Ignored pixels of the target do not count.

    Args:
        prediction: class ids (H, W).
        target: class ids (H, W).
        measures: what to measure.
        probabilities: (K, H, W), which `measures.thresholds` needs; None for no calibration error.
        label_image: (H, W), the objects of the target, cropped to the pixels of their class;
            None for the connected components of the class.
    """
    predicted, truth, num_classes = prediction.numpy(), target.numpy(), len(measures.class_names)
    values: dict[str, float | list[float]] = {}
    reliability = None if probabilities is None else reliability_counts(probabilities, target)
    if reliability is not None:
        values["expected_calibration_error"] = calibration_errors(reliability)[-1]
    boundary, counts, at_thresholds = None, None, {}
    if measures.boundary_tolerance is not None:
        boundary, hausdorff = boundary_measures(
            predicted, truth, num_classes, measures.boundary_tolerance
        )
        values |= {"boundary_f1": boundary_f1(boundary), "hausdorff95": hausdorff}
    if measures.thresholds:
        assert probabilities is not None
        counts = probability_counts(probabilities[1].numpy(), truth)
    if measures.objects is not None:
        true_mask, counted = truth == measures.objects, truth != IGNORE_INDEX
        objects = _true_objects(true_mask, counted, label_image)
        values |= _measure_objects(predicted == measures.objects, true_mask, objects, counted)
        if measures.thresholds and probabilities is not None:
            for threshold in OBJECT_THRESHOLDS:
                mask = choose_classes(probabilities, threshold) == measures.objects
                at_thresholds[threshold] = _measure_objects(mask, true_mask, objects, counted)
    return ImageMeasurements(
        size=(target.shape[0], target.shape[1]),
        matrix=confusion_matrix(prediction, target, num_classes),
        boundary=boundary,
        probability=counts,
        reliability=reliability,
        values=values,
        at_thresholds=at_thresholds,
    )


def _true_objects(
    mask: np.ndarray, counted: np.ndarray, label_image: np.ndarray | None
) -> np.ndarray:
    """Number the objects of a target, a bool mask (H, W)."""
    if label_image is None:
        return connected_components(mask)
    objects = np.where(mask, label_image, 0)
    if counted.all():
        return objects
    # Ignored pixels separate the objects of the prediction, so they also separate the components
    # of the labelled objects that touch them.
    ndimage = import_extra("scipy.ndimage", "scores of objects")
    near = ndimage.binary_dilation(~counted)
    touching = np.isin(objects, np.unique(objects[near]))
    components = connected_components(np.where(touching, objects, 0))
    return np.where(components > 0, components + objects.max(), objects)


def _measure_objects(
    prediction: np.ndarray, target: np.ndarray, true_objects: np.ndarray, counted: np.ndarray
) -> dict[str, float]:
    # Without ignored pixels before they are labelled, as these separate objects.
    precisions = average_precision(connected_components(prediction & counted), true_objects)
    return {
        **membrane_scores(prediction, target, counted, true_objects),
        "object_average_precision": sum(precisions) / len(precisions),
        **{
            f"object_average_precision_at_iou_{threshold:.2f}": precision
            for threshold, precision in zip(IOU_THRESHOLDS, precisions, strict=True)
        },
    }


def rules(measures: Measures) -> dict[str, str]:
    """Say how each group of scores is computed and averaged, by the group's name."""
    names, has_objects = measures.class_names, measures.objects is not None
    is_measured = {
        "always": True,
        "no boundaries": measures.boundary_tolerance is None,
        "boundaries": measures.boundary_tolerance is not None,
        "objects": has_objects,
        "label images": measures.labelled,
        "thresholds": measures.thresholds,
        "object thresholds": has_objects and measures.thresholds,
    }
    words = {
        "background": names[0],
        "foreground": names[1],
        "objects": names[measures.objects or 0],
        "tolerance": f"{measures.boundary_tolerance or 0:g}",
    }
    sections = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text("utf-8"))
    return {
        name.format(**words): text.format(**words)
        for section, texts in sections.items()
        if is_measured[section]
        for name, text in texts.items()
    }
