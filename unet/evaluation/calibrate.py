"""Calibrate a checkpoint on labelled images: a temperature, and thresholds for promises."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unet.build import build_reader
from unet.checkpoint import Calibration, Promise, find_checkpoint, load_checkpoint, save_checkpoint
from unet.config.loader import Overrides
from unet.evaluation.evaluate import find_scored_pairs
from unet.evaluation.scoring import predict_pairs
from unet.inference.loading import load_predictor
from unet.inspection.statistics import collect_statistics
from unet.metrics.calibration import (
    FEWEST_IMAGES,
    calibration_errors,
    fit_temperature,
    largest_threshold,
    promised_threshold,
    reliability_counts,
)
from unet.runtime import distributed
from unet.runtime.files import check_writable
from unet.runtime.text import format_list, plural

_MOST_PIXELS = 2_000_000  # that the temperature is fitted to


def calibrate(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    max_missed: float | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    overrides: Overrides = (),
    network: nn.Module | None = None,
    overwrite: bool = False,
) -> Calibration:
    """Write a copy of a checkpoint whose probabilities are calibrated on its validation images.

    Args:
        checkpoint: a best.pt or last.pt, or the folder of a run for its best.pt.
        out: the file to write; None for NAME-calibrated.pt next to NAME.pt.
        max_missed: promise for 95 % of images that at most this fraction of the pixels of a class
            are missed, from 0 to 1; None for no promise.
        images: folder or pattern of images to use instead of the validation split.
        masks: folder or pattern of the masks of `images`.
        overrides: as in `load_model`; they are not written.
        network: as in `load_model`.
        overwrite: whether to replace an existing file.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the checkpoint or an image is missing.
        ValueError: if an argument or a file is wrong, or there are too few images for a promise.
    """
    path = find_checkpoint(checkpoint)
    out = path.with_name(f"{path.stem}-calibrated.pt") if out is None else Path(out)
    _check_arguments(path, out, max_missed, images, masks, overwrite)
    contents = load_checkpoint(path)
    model = replace(load_predictor(path, None, overrides, network), calibration=None)
    source, pairs, errors = find_scored_pairs(model, images, masks)
    collected = collect_statistics(pairs, build_reader(model.config))
    if all_errors := errors + collected.unreadable + collected.errors:
        raise ValueError(format_list(all_errors))

    fraction = min(1.0, _MOST_PIXELS / int(collected.statistics.sizes.prod(1).sum()))
    before, logits, targets = [], [], []
    for i, _, scores, target in predict_pairs(model, pairs, "fit temperature"):
        scores = scores.cpu()
        before.append(reliability_counts(scores.softmax(0), target))
        random = torch.Generator().manual_seed(i)
        chosen = torch.rand(target.shape, generator=random) < fraction
        chosen &= target < len(model.classes.names)  # not ignored
        logits.append(scores[:, chosen].T.clone())
        targets.append(target[chosen].long())
    temperature = fit_temperature(torch.cat(logits), torch.cat(targets))
    where = f"{plural(len(pairs), 'image')} of {source}"
    calibration = Calibration(temperature=temperature, source=where, errors=(0.0, 0.0))

    after, thresholds = [], [list[float]() for _ in model.classes.names]
    calibrated = replace(model, calibration=calibration)
    for _, _, scores, target in predict_pairs(calibrated, pairs, "calibrate"):
        probabilities = scores.cpu().softmax(0)
        after.append(reliability_counts(probabilities, target))
        for class_id, of_class in enumerate(thresholds):
            pixels = probabilities[class_id][target == class_id]
            if max_missed is not None and len(pixels):
                of_class.append(largest_threshold(pixels, max_missed))
    error_before, error_after = (
        calibration_errors(np.sum(one, axis=0))[-1] for one in (before, after)
    )
    calibration = replace(
        calibration,
        errors=(error_before, error_after),
        max_missed=max_missed,
        promises=() if max_missed is None else _promise(thresholds, model.classes.names),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, {**contents, "calibration": asdict(calibration)})
    return calibration


def _check_arguments(
    path: Path,
    out: Path,
    max_missed: float | None,
    images: str | Path | None,
    masks: str | Path | None,
    overwrite: bool,
) -> None:
    distributed.check_single("calibrate")
    if path.suffix == ".onnx":
        raise ValueError(
            f"{path}: is an exported file, expected a checkpoint; calibrate the checkpoint, and "
            "export the result"
        )
    if max_missed is not None and not 0 < max_missed < 1:
        raise ValueError(f"max_missed: got {max_missed}, expected a fraction between 0 and 1")
    if (images is None) != (masks is None):
        raise ValueError("calibrate: got one of images=DIR and masks=DIR, expected both or neither")
    if out.suffix not in (".pt", ".pth") or out.is_dir() or out == path:
        raise ValueError(f"{out}: expected another file that ends in .pt")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: exists; pass overwrite=True to replace it")
    check_writable(out.parent)


def _promise(thresholds: list[list[float]], names: tuple[str, ...]) -> tuple[Promise, ...]:
    """Return a promise for each class that enough images have.

    Raises:
        ValueError: if there is none for any class except the first.
    """
    promises = [
        Promise(class_id=i, threshold=threshold, images=len(of_class))
        for i, of_class in enumerate(thresholds)
        if (threshold := promised_threshold(of_class)) is not None
    ]
    if not any(promise.class_id for promise in promises):
        got = ", ".join(
            f"{len(one)} with {name}" for one, name in zip(thresholds, names, strict=True)
        )
        raise ValueError(
            f"calibrate: got images {got}, expected {FEWEST_IMAGES} or more with a class other "
            f"than {names[0]} to promise how much of it is missed; give more with images=DIR and "
            "masks=DIR, or no max_missed=RATE"
        )
    return tuple(promises)
