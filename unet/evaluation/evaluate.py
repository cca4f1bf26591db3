"""A model and pairs of files -> scores and a report."""

import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unet.build import build_reader, list_pairs, list_validation_pairs
from unet.config.values import flat_settings
from unet.data.dataset import SegmentationDataset
from unet.data.loader import load_samples, worker_errors
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.evaluation.measurements import ImageMeasurements, Measures, Summary, measure, summarize
from unet.evaluation.report import Example, choose_examples, example_pictures, html_report
from unet.evaluation.results import check_results, score_table, write_results
from unet.inference.predictor import Predictor, load_model
from unet.inference.tta import Kind, choose, probabilities
from unet.inspection.statistics import collect_statistics
from unet.metrics.confusion import confusion_matrix
from unet.metrics.precision_recall import NUM_BINS, precision_recall, probability_counts
from unet.models.unet import argmax_classes
from unet.runtime import distributed
from unet.runtime.optional import import_extra, is_installed
from unet.runtime.signals import StopRequest
from unet.runtime.text import listed
from unet.visualize import image_to_rgb

# An image (C, H, W) from 0 to 1, its target and the prediction, (H, W) class ids.
Segmented = tuple[Tensor, np.ndarray, np.ndarray]


def validation_pairs(model: Predictor, instances: bool = False) -> list[Pair]:
    """Find the pairs that were kept from the model's training, whatever else has come since.

    Args:
        model: of the run.
        instances: whether their label images come with them, if the config names such.

    Raises:
        FileNotFoundError: if a folder or one of the pairs is missing.
        ValueError: if files do not pair.
    """
    own = model.config.data.validation.images is not None
    pairs, faults = (list_validation_pairs if own else list_pairs)(
        model.config, instances=instances
    )
    by_stem = {pair.stem: pair for pair in pairs}
    missing = [stem for stem in model.val_stems if stem not in by_stem]
    if missing:
        raise FileNotFoundError(
            f"{model.config.data.root}: got no pair {', '.join(missing[:5])}, expected all files "
            f"of the {len(model.val_stems)} validation images of the run; set data.root=FOLDER"
            + "".join(f"\n{fault}" for fault in faults[:5])
        )
    return [by_stem[stem] for stem in model.val_stems]


def confusion_of_pairs(
    model: Predictor,
    pairs: Sequence[Pair],
    what: str,
    stop: StopRequest | None = None,
    places: Collection[int] = (),
    seen: dict[int, Segmented] | None = None,
) -> Tensor:
    """Predict every image and count its pixels at the mask's own size: (K, K) int64.

    The processes share the images; all return the matrix of all images.

    Args:
        model: to be scored.
        pairs: image and mask files.
        what: the pairs' name on the progress bar.
        stop: looked at before each image.
        places: of the pairs that are also to be looked at.
        seen: where these are put, by their place.

    Raises:
        Stopped: if a signal has come meanwhile.
    """
    num_classes = len(model.classes.names)
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    own: dict[int, Segmented] = {}
    for place, image, scores, target in _scores_of_pairs(model, pairs, what, stop):
        prediction = argmax_classes(scores).cpu()
        matrix += confusion_matrix(prediction, target, num_classes)
        if place in places:
            own[place] = (image, target.numpy(), prediction.numpy())
    if seen is not None:
        for part in distributed.all_gather(own):
            seen.update(part)
    return distributed.all_reduce_sum(matrix)


def _scores_of_pairs(
    model: Predictor,
    pairs: Sequence[Pair],
    what: str,
    stop: StopRequest | None = None,
    tta: Sequence[Kind] = (),
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """This process's share: place among all, image, logits (with tta probabilities), target."""
    places = distributed.shard([(0, index) for index in range(len(pairs))])
    samples = load_samples(
        SegmentationDataset(pairs, build_reader(model.config), normalization=None),
        sampler=places,  # images one by one, as their sizes differ
        num_workers=model.config.train.num_workers,
    )
    bar = tqdm(
        samples,
        what,
        total=len(places),
        unit="image",
        leave=False,
        disable=distributed.disable_progress(),
    )
    # As many rounds in each process, so that all look for a signal equally often.
    rounds = range(math.ceil(len(pairs) / distributed.world_size()))
    for i, sample in zip_longest(rounds, bar):
        if stop is not None:
            stop.check()
        if sample is not None:
            image, target = sample
            scores = probabilities(model, image, tta) if tta else model.logits(image)
            yield places[i][1], image, scores, target


def evaluate(
    checkpoints: Sequence[Path],
    overrides: Sequence[str] = (),
    images: str | None = None,
    masks: str | None = None,
    labels: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    boundary_distance: float = 2.0,
    objects: str | None = None,
    threshold: bool = False,
    tta: Sequence[Kind] = (),
) -> Path:
    """Score a checkpoint, print a table and write a folder of results.

    These are `per_image.csv`, `confusion.png`, `report.html`, with `threshold` `thresholds.csv`,
    with `objects` besides `object_thresholds.csv`, and, when all others are there, `metrics.json`.

    Args:
        checkpoints: a best.pt or last.pt; several are scored as one, their probabilities averaged.
        overrides: changes to its config, such as `data.root=...`.
        images: folder or pattern, as `data.images`, to score instead of the validation split,
            together with `masks`.
        masks: see `images`.
        labels: likewise `data.instances`, the label images of `images`, together with `objects`.
        out: folder for the results; None for `evaluation_<checkpoint's stem>` beside the one.
        overwrite: whether to replace results that are there.
        boundary_distance: in pixels, within which a boundary counts as found. Without scipy
            boundaries are not measured.
        objects: class whose connected parts are objects, to be measured as such; "" for the
            second of two; None for no such measures. The true ones are the objects of label images,
            where `labels` or, for the validation split, the config names such, else also parts.
        threshold: whether to score every threshold of the second of two classes' probability; with
            `objects` also the objects at thresholds.
        tta: kinds of test-time augmentation.

    Returns:
        `metrics.json`.

    Raises:
        FileExistsError: if there are results and not `overwrite`.
        FileNotFoundError: if the checkpoint or a folder is missing.
        PermissionError: if the folder cannot be written to.
        ValueError: if the checkpoint, an override, or a file is not as it must be, or the model
            has not the classes that a measure needs.
    """
    if (images is None) != (masks is None):
        raise ValueError("evaluate: got one of --images and --masks, expected both or none")
    if labels is not None and (images is None or objects is None):
        raise ValueError(
            "evaluate: got --labels, expected it with --images, whose label images they are, and "
            "--instances; those of the validation split are data.instances"
        )
    first = checkpoints[0]
    if len(checkpoints) > 1 and out is None:
        raise ValueError(
            "evaluate: got several checkpoints, expected a folder for their scores: -o"
        )
    if not 0 <= boundary_distance < math.inf:
        raise ValueError(
            f"evaluate: got --boundary {boundary_distance:g}, expected pixels from 0 up"
        )
    folder = out or first.parent / f"evaluation_{first.stem}"
    model = load_model(checkpoints if len(checkpoints) > 1 else first, overrides=overrides)
    measures = _measures(model.classes.names, boundary_distance, objects, threshold)
    check_results(folder, overwrite)
    pairs, faults, source = _pairs_to_score(model, images, masks, labels, objects is not None)
    measures = replace(measures, labelled=all(pair.instances is not None for pair in pairs))

    distributed.initialize()

    def check() -> None:
        _, _, unreadable, wrong = collect_statistics(pairs, build_reader(model.config))
        if all_faults := faults + unreadable + wrong:
            raise ValueError(listed(all_faults))

    distributed.run_on_first_rank(check)
    summary, predictions = _measure_pairs(model, pairs, measures, threshold, tta)
    examples = _draw_examples(model, pairs, summary, predictions)
    path = folder / "metrics.json"
    if distributed.rank():
        return path
    shown = str(first) if len(checkpoints) == 1 else f"the mean of {len(checkpoints)} checkpoints"
    title = f"{shown} on {len(pairs)} images of {source}"
    if tta:
        title += f", with {' and '.join(tta)}"
    settings = model.config.model
    facts = {
        "checkpoint": ", ".join(map(str, checkpoints)),
        "images": f"{len(pairs)} of {source}",
        "classes": ", ".join(summary.names),
        "network": f"U-Net of widths {', '.join(map(str, settings.widths))}"
        + (f", encoder {settings.encoder}" if settings.encoder != "none" else ""),
        "test-time augmentation": ", ".join(tta) or "none",
        "unet": version("unet"),
    }
    report = html_report(
        summary,
        title=title,
        facts=facts,
        settings=flat_settings(model.config),
        colours=model.classes.colours,
        examples=examples,
    )
    said = {
        "checkpoints": [str(checkpoint) for checkpoint in checkpoints],
        "tta": list(tta),
        "source": source,
    }
    print(f"{title}\n\n{score_table(summary)}")
    written = write_results(folder, summary, [pair.stem for pair in pairs], report, said)
    print(f"\nwrote {folder / 'report.html'}, and beside it {', '.join(written[1:])}")
    return path


def _measures(
    names: Sequence[str], boundary_distance: float, objects: str | None, threshold: bool
) -> Measures:
    """What is to be measured, if these classes can be."""
    if threshold and len(names) > 2:
        raise ValueError(
            f"evaluate: got --threshold for a model of {len(names)} classes, expected one of two "
            "classes, whose second one's probability has a threshold; leave it out"
        )
    class_id = None
    if objects is not None:
        import_extra("skimage.measure", "--instances")
        if objects == "" and len(names) > 2:
            raise ValueError(
                f"evaluate: got --instances for a model of {len(names)} classes, expected the "
                f"class whose parts are objects, such as --instances {names[1]}"
            )
        if objects and objects not in names:
            raise ValueError(
                f"evaluate: got --instances {objects}, expected one of the classes "
                f"{', '.join(names)}"
            )
        class_id = names.index(objects or names[1])
    return Measures(
        boundary_distance=boundary_distance if is_installed("scipy") else None, objects=class_id
    )


def _pairs_to_score(
    model: Predictor,
    images: str | None,
    masks: str | None,
    labels: str | None,
    instances: bool,
) -> tuple[list[Pair], list[str], str]:
    """The pairs, with label images if there are any, what is wrong, and where they are from."""
    data = model.config.data
    if images is not None and (data.channels is not None or isinstance(data.masks, dict)):
        raise ValueError(
            "evaluate: got --images and --masks, but the model's images or masks lie in several "
            "files each; set data.root=FOLDER, or data.channels and data.masks, instead"
        )
    if images is not None and masks is not None:
        pairs, faults = find_pairs(Path(), [images], masks, data.stacks, instances=labels)
        return pairs, faults, f"{images} and {masks}"
    if strangers := [one for one in model.others if one.val_stems != model.val_stems]:
        raise ValueError(
            f"evaluate: got checkpoints with other validation images ({len(strangers)} of "
            f"{1 + len(model.others)}), which the rest have been trained on; give images that none "
            "has seen with --images and --masks"
        )
    if not model.val_stems:
        raise ValueError(
            "evaluate: got a checkpoint without validation images, expected --images and --masks"
        )
    return validation_pairs(model, instances), [], "the validation split"


@worker_errors()
def _measure_pairs(
    model: Predictor,
    pairs: Sequence[Pair],
    measures: Measures,
    threshold: bool,
    tta: Sequence[Kind],
) -> tuple[Summary, dict[int, bytes]]:
    """Measure every image once; the summary of all, and this process's predictions, packed."""
    names = model.classes.names
    own: dict[int, ImageMeasurements] = {}
    predictions: dict[int, bytes] = {}
    counts = torch.zeros(2, NUM_BINS, dtype=torch.int64)
    reader = build_reader(model.config)
    for i, _, scores, target in _scores_of_pairs(model, pairs, "evaluate", tta=tta):
        prediction = argmax_classes(scores).cpu()
        thresholded = None
        if threshold:
            shares = (scores if tta else scores.softmax(0)).cpu()
            counts += torch.from_numpy(probability_counts(shares[1].numpy(), target.numpy()))
            thresholded = partial(choose, shares)  # as `unet predict --threshold` does
        labels = None
        if measures.labelled and measures.objects is not None:
            labels = _labels(reader, pairs[i], target.numpy(), measures.objects)
        own[i] = measure(prediction, target, len(names), measures, thresholded, labels)
        # Masks are mostly even: a hundredth of their size, and never predicted twice.
        predictions[i] = zlib.compress(prediction.numpy().tobytes(), 1)
    everything = {i: one for part in distributed.all_gather(own) for i, one in part.items()}
    curve = precision_recall(distributed.all_reduce_sum(counts).numpy()) if threshold else None
    images = [everything[i] for i in range(len(pairs))]
    return summarize(images, names, measures, curve), predictions


def _labels(reader: PairReader, pair: Pair, target: np.ndarray, class_id: int) -> np.ndarray:
    """The label image of a target (H, W), if it numbers the objects of the class."""
    labels = reader.label_image(pair, target)
    numbered = labels[target == class_id] > 0
    if 2 * np.count_nonzero(numbered) < numbered.size:
        name = reader.classes.names[class_id]
        raise ValueError(
            f"{pair.instances}: numbers {numbered.mean():.0%} of the pixels of {name} in "
            f"{pair.masks[0]}, expected most; score another class by --instances CLASS, or give "
            "other label images"
        )
    return labels


def _draw_examples(
    model: Predictor,
    pairs: Sequence[Pair],
    summary: Summary,
    predictions: dict[int, bytes],
) -> list[Example]:
    """The worst, median and best images; each process draws those that it has predicted."""
    chosen = choose_examples(summary.ranking)
    dataset = SegmentationDataset(pairs, build_reader(model.config), normalization=None)
    drawn = {}
    for i in (i for members in chosen.values() for i in members if i in predictions):
        image, target = dataset[0, i]
        prediction = np.frombuffer(zlib.decompress(predictions[i]), np.uint8)
        drawn[i] = example_pictures(
            image_to_rgb(image),
            target.numpy(),
            prediction.reshape(summary.sizes[i]),
            model.classes.colours,
        )
    everything = {i: one for part in distributed.all_gather(drawn) for i, one in part.items()}
    scores = summary.columns["mean_iou"].tolist()
    return [
        Example(group=group, stem=pairs[i].stem, score=scores[i], pictures=everything[i])
        for group, members in chosen.items()
        for i in members
    ]
