"""Score a checkpoint on labelled images and write a report."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unet.build import build_reader, list_pairs, list_validation_pairs
from unet.config.values import flat_settings
from unet.data.dataset import SegmentationDataset
from unet.data.loader import worker_errors
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.evaluation.measure import ImageMeasurements, Measures, measure_image
from unet.evaluation.report import Example, choose_examples, draw_example, render_report
from unet.evaluation.results import check_results, write_results
from unet.evaluation.scoring import gather, predict_pairs
from unet.evaluation.summary import Summary, summarize
from unet.inference.predictor import Model, load_model
from unet.inference.tta import TtaMode
from unet.inspection.statistics import collect_statistics
from unet.models.unet import argmax_classes
from unet.runtime import distributed
from unet.runtime.optional import import_extra, is_installed
from unet.runtime.text import format_list
from unet.visualize import image_to_rgb


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The images to score and the scores to compute.

    Raises:
        ValueError: if the options contradict each other.
    """

    images: str | None = None
    """Folder or pattern of images to score instead of the validation split; needs `masks`."""
    masks: str | None = None
    label_images: str | None = None
    """Number the objects of `masks`; for the validation split, the config names label images.
    Without label images, the objects are the connected components of the masks."""
    boundary_tolerance: float = 2.0
    """Pixels within which a boundary counts as found; not measured if scipy is not installed."""
    objects: str | bool = False
    """The class whose connected components are scored as objects; True: the second of two."""
    thresholds: bool = False
    """Whether to score all thresholds of the second of two classes' probability, and with
    `objects` the objects at 19 of them."""
    tta: Sequence[TtaMode] = ()
    """Test-time augmentation."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.masks is None):
            raise ValueError("evaluate: got only one of images and masks, expected both or neither")
        if self.label_images is not None and (self.images is None or not self.objects):
            raise ValueError(
                "evaluate: got label images without images to score or without objects, expected "
                "both; for the validation split, set data.instances instead"
            )
        if not 0 <= self.boundary_tolerance < math.inf:
            raise ValueError(
                f"evaluate: got the boundary tolerance {self.boundary_tolerance:g}, expected a "
                "number of pixels, 0 or more"
            )


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    options: EvaluationOptions = EvaluationOptions(),
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Score a checkpoint: `evaluate("runs/mine/best.pt")["mean_iou"]`.

    Distributed processes divide the images among them; each returns all scores.

    Args:
        checkpoint: a best.pt or last.pt; the probabilities of several are averaged.
        options: the images to score and the scores to compute.
        overrides: changes to the config of the checkpoint, such as `data.root=DIR`.
        out: folder for the report, metrics.json and tables; None to write nothing.
        overwrite: whether to replace results in `out`.

    Raises:
        FileExistsError: if there are results in `out` and not `overwrite`.
        FileNotFoundError: if a checkpoint, a folder or one of the validation images is missing.
        PermissionError: if `out` cannot be written to.
        ValueError: if a checkpoint, an override or a file is invalid, or the options do not suit
            the model.
    """
    paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    model = load_model(paths if len(paths) > 1 else paths[0], overrides=overrides)
    objects = _objects_of(model, options)
    if out is not None:
        check_results(Path(out), overwrite)
    pairs, errors, source = _pairs_to_score(model, options)
    measures = Measures(
        class_names=model.classes.names,
        boundary_tolerance=options.boundary_tolerance if is_installed("scipy") else None,
        objects=objects,
        labelled=objects is not None and all(pair.instances is not None for pair in pairs),
        thresholds=options.thresholds,
    )
    distributed.initialize()

    @distributed.on_first_rank
    def check() -> None:
        collected = collect_statistics(pairs, build_reader(model.config))
        if all_errors := errors + collected.unreadable + collected.errors:
            raise ValueError(format_list(all_errors))

    check()
    measurements, predictions = _measure_pairs(model, pairs, measures, options.tta)
    who = str(paths[0]) if len(paths) == 1 else f"ensemble of {len(paths)} checkpoints"
    how = f", with {' and '.join(options.tta)}" if options.tta else ""
    title = f"{who} on {len(pairs)} images of {source}{how}"
    summary = summarize(measurements, measures, [pair.stem for pair in pairs], title)
    if out is not None:
        examples = _draw_examples(model, pairs, summary, predictions)
        facts = {"checkpoints": [*map(str, paths)], "tta": [*options.tta], "source": source}
        if distributed.rank() == 0:
            settings, colours = flat_settings(model.config), model.classes.colours
            report = render_report(summary, facts, settings, colours, examples)
            write_results(Path(out), summary, report, facts)
    return summary


def _objects_of(model: Model, options: EvaluationOptions) -> int | None:
    """Return the id of the class whose objects are scored, if the model suits the options."""
    names = model.classes.names
    if options.thresholds and len(names) > 2:
        raise ValueError(
            f"evaluate: got a model of {len(names)} classes, expected one of two classes to score "
            "thresholds, which are those of the second class's probability; leave thresholds out"
        )
    if not options.objects:
        return None
    import_extra("skimage.measure", "scores of objects")
    if options.objects is True:
        if len(names) > 2:
            raise ValueError(
                f"evaluate: got objects of a model of {len(names)} classes, expected the class "
                f"whose components are objects, such as {names[1]}"
            )
        return 1
    if options.objects not in names:
        raise ValueError(
            f"evaluate: got objects of {options.objects}, expected one of the classes "
            f"{', '.join(names)}"
        )
    return names.index(options.objects)


def _pairs_to_score(
    model: Model, options: EvaluationOptions
) -> tuple[Sequence[Pair], list[str], str]:
    """Return the pairs, the errors of files that do not pair, and where the images are from."""
    data = model.config.data
    if options.images is not None and options.masks is not None:
        if data.channels is not None or isinstance(data.masks, dict):
            raise ValueError(
                "evaluate: got a folder of images and one of masks, but the model was trained on "
                "several files for each image or mask; set data.root=FOLDER, or data.channels and "
                "data.masks, instead"
            )
        pairs, errors = find_pairs(
            Path(), [options.images], options.masks, data.stacks, instances=options.label_images
        )
        return pairs, errors, f"{options.images} and {options.masks}"
    stems = [member.val_stems for member in model.members]
    if differing := sum(one != stems[0] for one in stems):
        raise ValueError(
            f"evaluate: got checkpoints with different validation images ({differing} of "
            f"{len(stems)} differ from the first), expected the same, as no model should be scored "
            "on its training images; give other images with their masks"
        )
    if not stems[0]:
        raise ValueError(
            "evaluate: got a checkpoint without validation images, expected images and masks to "
            "score"
        )
    return _validation_pairs(model, bool(options.objects)), [], "the validation split"


def _validation_pairs(model: Model, instances: bool) -> list[Pair]:
    """Find the validation images of the run, even if the folders have other files by now."""
    config = model.config
    find = list_pairs if config.data.validation.images is None else list_validation_pairs
    pairs, errors = find(config, instances=instances)
    by_stem = {pair.stem: pair for pair in pairs}
    missing = [stem for stem in model.val_stems if stem not in by_stem]
    if missing:
        raise FileNotFoundError(
            f"{config.data.root}: got no pair {', '.join(missing[:5])}, expected all files "
            f"of the {len(model.val_stems)} validation images of the run; set data.root=FOLDER"
            + "".join(f"\n{error}" for error in errors[:5])
        )
    return [by_stem[stem] for stem in model.val_stems]


@worker_errors()
def _measure_pairs(
    model: Model, pairs: Sequence[Pair], measures: Measures, tta: Sequence[TtaMode]
) -> tuple[list[ImageMeasurements], dict[int, bytes]]:
    """Measure every image; the measurements of all and this process's predictions, compressed."""
    measured: dict[int, ImageMeasurements] = {}
    predictions: dict[int, bytes] = {}
    reader = build_reader(model.config)
    for i, _, scores, target in predict_pairs(model, pairs, "evaluate", tta=tta):
        prediction = argmax_classes(scores).cpu()
        probabilities, label_image = None, None
        if measures.thresholds:
            probabilities = (scores if tta else scores.softmax(0)).cpu()
        if measures.labelled and measures.objects is not None:
            label_image = _read_label_image(reader, pairs[i], target.numpy(), measures.objects)
        measured[i] = measure_image(prediction, target, measures, probabilities, label_image)
        # Kept to draw some of them: masks compress to about a hundredth of their size.
        predictions[i] = zlib.compress(prediction.numpy().tobytes(), 1)
    everything = gather(measured)
    return [everything[i] for i in range(len(pairs))], predictions


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


def _draw_examples(
    model: Model, pairs: Sequence[Pair], summary: Summary, predictions: Mapping[int, bytes]
) -> dict[str, list[Example]]:
    """Draw the worst, median and best images; each process draws those that it has predicted."""
    chosen = choose_examples(summary.ranking)
    dataset = SegmentationDataset(pairs, build_reader(model.config), normalization=None)
    drawn = {}
    for i in (i for members in chosen.values() for i in members if i in predictions):
        image, target = dataset[0, i]
        prediction = np.frombuffer(zlib.decompress(predictions[i]), np.uint8)
        prediction = prediction.reshape(summary.sizes[i])
        pictures = draw_example(
            image_to_rgb(image), target.numpy(), prediction, model.classes.colours
        )
        score = float(summary.columns["mean_iou"][i])
        drawn[i] = Example(stem=pairs[i].stem, score=score, pictures=pictures)
    everything = gather(drawn)
    return {group: [everything[i] for i in members] for group, members in chosen.items()}
