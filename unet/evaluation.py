"""A model and pairs of files -> scores and a report."""

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from unet import distributed
from unet.atomic import atomic_path
from unet.check import list_pairs, listed, pair_reader, table
from unet.checkpoint import SegmentationModel, load_model
from unet.data import SegmentationDataset
from unet.metrics import Scores, confusion_matrix, scores
from unet.pairs import Pair, find_pairs
from unet.stopping import StopRequest, leave_signals_to_parent
from unet.survey import read_pairs

# An image (C, H, W) from 0 to 1, its target and the prediction, (H, W) class ids.
Segmented = tuple[Tensor, np.ndarray, np.ndarray]


def validation_pairs(model: SegmentationModel) -> list[Pair]:
    """Find the pairs that were kept from the model's training, whatever else has come since.

    Raises:
        FileNotFoundError: if a folder or one of the pairs is missing.
        ValueError: if files do not pair.
    """
    pairs, own_pairs, faults = list_pairs(model.config)
    by_stem = {pair.stem: pair for pair in own_pairs or pairs}
    missing = [stem for stem in model.val_stems if stem not in by_stem]
    if missing:
        raise FileNotFoundError(
            f"{model.config.data.root}: got no pair {', '.join(missing[:5])}, expected the "
            f"{len(model.val_stems)} validation images of the run; set data.root=FOLDER"
            + "".join(f"\n{fault}" for fault in faults[:5])
        )
    return [by_stem[stem] for stem in model.val_stems]


def confusion_of_pairs(
    model: SegmentationModel,
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
    mine = distributed.share(range(len(pairs)))
    loader = DataLoader(
        SegmentationDataset(pairs, pair_reader(model.config), normalization=None),
        batch_size=None,  # images one by one, as their sizes differ
        sampler=[(0, index) for index in mine],
        num_workers=model.config.train.num_workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    bar = tqdm(loader, what, unit="image", leave=False, disable=distributed.hide_bar())
    # As many rounds in each process, so that all look for a signal equally often.
    rounds = range(math.ceil(len(pairs) / distributed.world_size()))
    own: dict[int, Segmented] = {}
    for i, sample in zip_longest(rounds, bar):
        if stop is not None:
            stop.check()
        if sample is not None:
            image, target = sample
            prediction = model.logits(image).argmax(0).cpu()
            matrix += confusion_matrix(prediction, target, num_classes)
            if mine[i] in places:
                own[mine[i]] = (image, target.numpy(), prediction.numpy())
    if seen is not None:
        for part in distributed.gather(own):
            seen.update(part)
    return distributed.total(matrix)


def evaluate(
    checkpoints: Sequence[Path],
    overrides: Sequence[str] = (),
    images: str | None = None,
    masks: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Score a checkpoint, print a table and write `metrics.json`.

    Args:
        checkpoints: a best.pt or last.pt; several are scored as one, their probabilities averaged.
        overrides: changes to its config, such as `data.root=...`.
        images: folder or pattern, as `data.images`, to score instead of the validation split,
            together with `masks`.
        masks: see `images`.
        out: folder for the results; None for `evaluation_<checkpoint's stem>` beside the one.
        overwrite: whether to replace results that are there.

    Returns:
        The file written.

    Raises:
        FileExistsError: if there are results and not `overwrite`.
        FileNotFoundError: if the checkpoint or a folder is missing.
        ValueError: if the checkpoint, an override, or a file is not as it must be.
    """
    if (images is None) != (masks is None):
        raise ValueError("evaluate: got one of --images and --masks, expected both or none")
    first = checkpoints[0]
    if len(checkpoints) > 1 and out is None:
        raise ValueError(
            "evaluate: got several checkpoints, expected a folder for their scores: -o"
        )
    path = (out or first.parent / f"evaluation_{first.stem}") / "metrics.json"
    if path.parent.exists() and not path.parent.is_dir():
        raise FileExistsError(f"{path.parent}: is a file; give a folder with -o")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path}: exists; pass --overwrite to replace it, or -o FOLDER for another place"
        )
    model = load_model(checkpoints if len(checkpoints) > 1 else first, overrides=overrides)
    data = model.config.data
    if images is not None and (data.channels is not None or isinstance(data.masks, dict)):
        raise ValueError(
            "evaluate: got --images and --masks, but the model's images or masks lie in several "
            "files each; set data.root=FOLDER, or data.channels and data.masks, instead"
        )
    if images is not None and masks is not None:
        pairs, faults = find_pairs(Path(), [images], masks, data.stacks)
        source = f"{images} and {masks}"
    else:
        if strangers := [one for one in model.others if one.val_stems != model.val_stems]:
            raise ValueError(
                f"evaluate: got checkpoints with other validation images ({len(strangers)} of "
                f"{len(checkpoints)}), which the rest have been trained on; give images that none "
                "has seen with --images and --masks"
            )
        pairs, faults, source = validation_pairs(model), [], "the validation split"

    distributed.join()

    def check() -> None:
        _, _, unreadable, wrong = read_pairs(pairs, pair_reader(model.config))
        if all_faults := faults + unreadable + wrong:
            raise ValueError(listed(all_faults))

    distributed.from_first(check)
    matrix = confusion_of_pairs(model, pairs, "evaluate")
    if distributed.rank():
        return path
    result, names = scores(matrix), model.classes.names
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "checkpoints": [str(checkpoint) for checkpoint in checkpoints],
        "source": source,
        "images": [pair.stem for pair in pairs],
        "rule": "all pixels of all images in one confusion matrix, ignored pixels not counted; "
        "means over the classes that have a score, background included; null: no score",
        "classes": list(names),
        **_without_nan(dataclasses.asdict(result)),
        "confusion_matrix": matrix.tolist(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shown = str(first) if len(checkpoints) == 1 else f"the mean of {len(checkpoints)} checkpoints"
    print(f"{shown} on {len(pairs)} images of {source}\n")
    print(score_table(result, names))
    print()
    print(confusion_table(matrix, names))
    print(f"\nwrote {path}")
    return path


def score_table(result: Scores, names: Sequence[str]) -> str:
    """Lay out the scores as text, a line for each class, then the means."""
    columns = ("IoU", "Dice", "precision", "recall")
    values = zip(result.iou, result.dice, result.precision, result.recall, strict=True)
    absent = sum(math.isnan(iou) for iou in result.iou)
    rows = [
        ("class", *columns),
        *((name, *map(_show, row)) for name, row in zip(names, values, strict=True)),
        ("mean", _show(result.mean_iou), _show(result.mean_dice), "", ""),
    ]
    note = f"; {absent} class(es) in neither target nor prediction have none" if absent else ""
    return (
        f"{table(rows)}\n\npixel accuracy {_show(result.pixel_accuracy)}"
        f"\nmeans over classes, background included{note}"
    )


def confusion_table(matrix: Tensor, names: Sequence[str]) -> str:
    """Lay out the confusion matrix as text, in percent of each target class."""
    shares = 100 * matrix.double() / matrix.sum(1, keepdim=True)
    # Columns are numbered: names side by side would not fit a terminal.
    rows = [
        ("% of target", *(str(i) for i in range(len(names)))),
        *(
            (f"{i} {name}", *("-" if math.isnan(x) else f"{x:.1f}" for x in row))
            for i, (name, row) in enumerate(zip(names, shares.tolist(), strict=True))
        ),
    ]
    return f"confusion matrix: rows are targets, columns predictions\n{table(rows)}"


def _show(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.4f}"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there is no score."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if math.isnan(value) else value
