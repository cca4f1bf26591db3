"""Score a checkpoint on labelled images and write a report."""

import math
import zlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from unet.build import build_reader, list_pairs, list_validation_pairs
from unet.checkpoint import find_checkpoint
from unet.config.loader import Overrides
from unet.config.values import flat_settings
from unet.data.dataset import SegmentationDataset
from unet.data.loader import worker_errors
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.evaluation.measure import ImageMeasurements, Measures, measure_image
from unet.evaluation.report import choose_examples, make_example, render_report
from unet.evaluation.results import UnwrittenError, check_results, write_results
from unet.evaluation.scoring import gather, predict_pairs
from unet.evaluation.summary import Summary, summarize
from unet.inference.loading import load_model
from unet.inference.options import Options, describe_promise
from unet.inference.predictor import Model
from unet.inference.tta import TtaMode, choose_classes, list_views
from unet.inspection.statistics import collect_statistics
from unet.models.unet import argmax_classes
from unet.runtime import distributed
from unet.runtime.optional import import_extra, is_installed
from unet.runtime.text import format_list, join_some, plural
from unet.visualize import image_to_rgb

_MOST_KEPT = 2**29
"""Bytes of images that are kept for the pictures of the report; images beyond are read again."""


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    *,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    label_images: str | Path | None = None,
    boundary_tolerance: float = 2.0,
    objects: str | bool = False,
    thresholds: bool = False,
    tta: Sequence[TtaMode] = (),
    overrides: Overrides = (),
    network: nn.Module | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Score a checkpoint: `evaluate("runs/mine").mean_iou`.

    Distributed processes divide the images among them; each returns all scores.

    Args:
        checkpoint: a best.pt or last.pt, or the folder of a run for its best.pt; the probabilities
            of several are averaged.
        images: folder or pattern of images to score instead of the validation split.
        masks: folder or pattern of the masks of `images`.
        label_images: folder or pattern of files that number the objects of `masks`; for the
            validation split, the config names them. Without them, the objects are the connected
            components of the masks.
        boundary_tolerance: pixels within which a boundary counts as found; boundaries are scored if
            scipy is installed.
        objects: class whose connected components are scored as objects; True: the second of two.
        thresholds: whether to score all thresholds on the probability of the second of two classes,
            and 19 of them with `objects`.
        tta: modes of test-time augmentation: flips, turns, scales.
        overrides: changes to the config of the checkpoint, such as `{"data.root": DIR}`.
        network: as in `load_model`.
        out: folder for the report, metrics.json and tables; None to write nothing.
        overwrite: whether to replace results in `out`.

    Raises:
        FileExistsError: if there are results in `out` and not `overwrite`.
        FileNotFoundError: if a checkpoint, a folder or one of the validation images is missing.
        PermissionError: if `out` cannot be written to.
        TypeError: if a checkpoint is no path.
        UnwrittenError: if the results cannot be written; its attribute `scores` has them.
        ValueError: if a checkpoint, an override or a file is invalid, or the arguments contradict
            each other or do not suit the model.
    """
    _check_arguments(images, masks, label_images, objects, boundary_tolerance, tta)
    if isinstance(checkpoint, str) or not isinstance(checkpoint, Sequence):
        checkpoint = [checkpoint]
    paths = [find_checkpoint(path) for path in checkpoint]
    model = load_model(paths, overrides=overrides, network=network)
    object_class = _object_class(model, objects, thresholds)
    promise = Options(tta=tta).find_promise(model)
    if out is not None:
        check_results(Path(out), overwrite)
    source, pairs, errors = find_scored_pairs(
        model, images, masks, label_images, instances=object_class is not None
    )
    measures = Measures(
        class_names=model.classes.names,
        boundary_tolerance=boundary_tolerance if is_installed("scipy") else None,
        objects=object_class,
        labelled=object_class is not None and all(pair.instances is not None for pair in pairs),
        thresholds=thresholds,
    )
    distributed.initialize()
    if errors:
        _check_files(model, pairs, errors)
    measurements, drawings = _measure_pairs(model, pairs, measures, tta, draws=out is not None)
    who = str(paths[0]) if len(paths) == 1 else f"ensemble of {len(paths)} checkpoints"
    how = f", with {' and '.join(tta)}" if tta else ""
    how += f"; {describe_promise(model, promise)}" if promise is not None else ""
    title = f"{who} on {plural(len(pairs), 'image')} of {source}{how}"
    summary = summarize(measurements, measures, [pair.stem for pair in pairs], title)
    if out is not None:
        facts = {"checkpoints": [*map(str, paths)], "tta": [*tta], "source": source}
        try:
            _write_report(Path(out), model, pairs, summary, drawings, facts)
        except OSError as error:
            raise UnwrittenError(summary, Path(out), error) from error
    return summary


def _check_arguments(
    images: str | Path | None,
    masks: str | Path | None,
    label_images: str | Path | None,
    objects: str | bool,
    boundary_tolerance: float,
    tta: Sequence[TtaMode],
) -> None:
    """Raise ValueError if arguments are invalid for any model."""
    if (images is None) != (masks is None):
        got = "images=DIR without masks=DIR" if masks is None else "masks=DIR without images=DIR"
        raise ValueError(f"evaluate: got {got}; give both or neither")
    if label_images is not None and (images is None or not objects):
        raise ValueError(
            "evaluate: label_images=DIR needs images=DIR and objects=True; for the validation "
            "split, set data.instances instead"
        )
    if not 0 <= boundary_tolerance < math.inf:
        raise ValueError(
            f"evaluate: got boundary_tolerance={boundary_tolerance:g}, expected a number of "
            "pixels, 0 or more"
        )
    list_views(tta)  # raises ValueError for an unknown mode


def _object_class(model: Model, objects: str | bool, thresholds: bool) -> int | None:
    """Return the id of the class whose objects are scored, if the model suits the arguments."""
    names = model.classes.names
    if thresholds and len(names) > 2:
        raise ValueError(
            f"evaluate: got thresholds=True for a model of {len(names)} classes, but the "
            "thresholds are those of the second of two; leave thresholds=True out"
        )
    if not objects:
        return None
    import_extra("skimage.measure", "scores of objects")
    if objects is True:
        if len(names) > 2:
            raise ValueError(
                f"evaluate: the model has {len(names)} classes; name the class whose objects are "
                f"scored with objects=CLASS: one of {', '.join(names[1:])}"
            )
        return 1
    if objects not in names:
        near = get_close_matches(objects, names, 1)
        raise ValueError(
            f"evaluate: got the class {objects} for objects=CLASS, expected one of "
            f"{', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    return names.index(objects)


def find_scored_pairs(
    model: Model,
    images: str | Path | None,
    masks: str | Path | None,
    label_images: str | Path | None = None,
    instances: bool = False,
) -> tuple[str, Sequence[Pair], list[str]]:
    """Return the source of the pairs to score, the pairs, and the errors of files that do not pair.

    Without `images` and `masks`, they are the validation images of the run.
    """
    if images is None or masks is None:
        return "the validation split", validation_pairs(model, instances), []
    data = model.config.data
    if data.channels is not None or isinstance(data.masks, dict):
        raise ValueError(
            "evaluate: got images=DIR and masks=DIR, but the model was trained on several files "
            "for each image or mask; set data.root=DIR, or data.channels and data.masks, instead"
        )
    labels = None if label_images is None else str(label_images)
    found = find_pairs(Path(), [str(images)], str(masks), data.stacks, instances=labels)
    return f"{images} and {masks}", *found


def validation_pairs(model: Model, instances: bool) -> list[Pair]:
    """Find the validation images of the run, even if the folders have other files by now."""
    stems = [member.val_stems for member in model.members]
    if differing := sum(one != stems[0] for one in stems):
        raise ValueError(
            f"evaluate: {differing} of {len(stems)} checkpoints have other validation images than "
            "the first, and would be scored on their training images; score other images with "
            "images=DIR and masks=DIR"
        )
    if not stems[0]:
        raise ValueError(
            "evaluate: the model was trained without validation images; give the images to score "
            "with images=DIR and masks=DIR"
        )
    config = model.config
    find = list_pairs if config.data.validation.images is None else list_validation_pairs
    pairs, errors = find(config, instances=instances)
    by_stem = {pair.stem: pair for pair in pairs}
    missing = [stem for stem in model.val_stems if stem not in by_stem]
    if missing:
        raise FileNotFoundError(
            f"{config.data.root}: {len(missing)} of the {len(model.val_stems)} validation images "
            f"of the run are missing here ({join_some(missing)}); set data.root=FOLDER"
            + "".join(f"\n{error}" for error in errors[:5])
        )
    return [by_stem[stem] for stem in model.val_stems]


@distributed.on_first_rank
def _check_files(model: Model, pairs: Sequence[Pair], errors: Sequence[str] = ()) -> None:
    """Raise ValueError with `errors` and those of all files, if there are any."""
    collected = collect_statistics(pairs, build_reader(model.config))
    if all_errors := [*errors, *collected.unreadable, *collected.errors]:
        raise ValueError(format_list(all_errors))


class _Drawing(NamedTuple):
    """What the pictures of an image in the report are drawn from."""

    image: np.ndarray | None
    """(H, W, 3) uint8; None if it is read again."""
    target: bytes
    """Class ids (H, W) uint8, compressed to about a hundredth of their size."""
    prediction: bytes


@worker_errors()
def _measure_pairs(
    model: Model,
    pairs: Sequence[Pair],
    measures: Measures,
    tta: Sequence[TtaMode],
    draws: bool,
) -> tuple[list[ImageMeasurements], dict[int, _Drawing]]:
    """Measure every image; return the measurements of all, and the drawings of this process.

    Files are decoded once. An error in one is raised together with those of all other files.
    """
    measured: dict[int, ImageMeasurements] = {}
    drawings: dict[int, _Drawing] = {}
    promise = Options(tta=tta).find_promise(model)
    reader, free, problem = build_reader(model.config), _MOST_KEPT, None
    try:
        for i, image, scores, target in predict_pairs(model, pairs, "evaluate", tta=tta):
            probabilities, label_image = (scores if tta else scores.softmax(0)).cpu(), None
            if promise is None:
                prediction = argmax_classes(scores).cpu()
            else:
                ids = choose_classes(probabilities, promise.threshold, promise.class_id)
                prediction = torch.from_numpy(ids)
            if measures.labelled and measures.objects is not None:
                label_image = _read_label_image(reader, pairs[i], target.numpy(), measures.objects)
            measured[i] = measure_image(prediction, target, measures, probabilities, label_image)
            if draws:
                pixels = image_to_rgb(image) if 3 * target.numel() <= free else None
                free -= 0 if pixels is None else pixels.nbytes
                masks = target.to(torch.uint8), prediction
                drawings[i] = _Drawing(
                    pixels, *(zlib.compress(ids.numpy().data, 1) for ids in masks)
                )
    except (ValueError, OSError) as error:
        problem = error
    if distributed.any_rank(problem is not None):
        _check_files(model, pairs)
    if problem is not None:
        raise problem
    everything = gather(measured)
    return [everything[i] for i in range(len(pairs))], drawings


def _read_label_image(
    reader: PairReader, pair: Pair, target: np.ndarray, class_id: int
) -> np.ndarray:
    label_image = reader.label_image(pair, target)
    numbered = label_image[target == class_id] > 0
    if 2 * np.count_nonzero(numbered) < numbered.size:
        name = reader.classes.names[class_id]
        raise ValueError(
            f"{pair.instances}: numbers {numbered.mean():.0%} of the pixels of {name} in "
            f"{pair.masks[0]}, expected most of them; score the objects of another class, or give "
            "other label images"
        )
    return label_image


def _write_report(
    folder: Path,
    model: Model,
    pairs: Sequence[Pair],
    summary: Summary,
    drawings: Mapping[int, _Drawing],
    facts: Mapping[str, Any],
) -> None:
    """Write all results; each process draws those of the shown images that it has predicted."""
    chosen = choose_examples(summary.ranking)
    dataset = SegmentationDataset(pairs, build_reader(model.config), normalization=None)
    drawn, colours, scores = {}, model.classes.colours, summary.columns["mean_iou"].tolist()
    for i in (i for members in chosen.values() for i in members if i in drawings):
        image, *masks = drawings[i]
        target, prediction = (
            np.frombuffer(zlib.decompress(ids), np.uint8).reshape(summary.sizes[i]) for ids in masks
        )
        pixels = image_to_rgb(dataset[0, i][0]) if image is None else image
        drawn[i] = make_example(pairs[i], folder, scores[i], (pixels, target, prediction), colours)
    everything = gather(drawn)
    if distributed.rank() == 0:
        examples = {group: [everything[i] for i in members] for group, members in chosen.items()}
        report = render_report(summary, facts, flat_settings(model.config), colours, examples)
        write_results(folder, summary, report, facts)
