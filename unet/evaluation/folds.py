"""Out-of-fold predictions: every image by the models of the fold that has not seen it."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unet.build import list_pairs
from unet.checkpoint import find_checkpoint, load_checkpoint
from unet.config.loader import Overrides
from unet.data.loader import worker_errors
from unet.data.pairing import Pair
from unet.evaluation.evaluate import validation_pairs
from unet.evaluation.scoring import predict_pairs
from unet.inference.loading import load_model
from unet.inference.predictor import Model
from unet.runtime.text import join_some, plural


class Fold(NamedTuple):
    """A fold and its checkpoints, one for each seed."""

    number: int
    checkpoints: list[Path]


def find_folds(runs: Sequence[str | Path]) -> list[Fold]:
    """Find the best.pt of all folds; for a single run also those of the runs next to it.

    Raises:
        FileNotFoundError: if a fold has not been trained.
        ValueError: if a run has no fold, is not finished, or is of another series.
    """
    paths = [find_checkpoint(run) for run in runs]
    if len(paths) == 1 and (match := re.search(r"_fold\d+", paths[0].parent.name)):
        before, after = paths[0].parent.name[: match.start()], paths[0].parent.name[match.end() :]
        pattern = re.compile(rf"{re.escape(before)}_fold\d+{re.escape(after)}")
        beside = sorted(paths[0].parent.parent.glob("*/best.pt"))
        paths = [path for path in beside if pattern.fullmatch(path.parent.name)] or paths
    found: dict[int, list[Path]] = {}
    series = None
    for path in paths:
        contents = load_checkpoint(path)
        validation = contents["config"]["data"]["validation"]
        if validation["folds"] is None:
            raise ValueError(
                f"{path}: was not trained on a fold of a cross-validation, so that it knows "
                "most images; give the config, whose folds are then trained"
            )
        own = {**validation, "fold": None}, contents["config"]["data"]["classes"]
        if (series := series or own) != own:
            raise ValueError(
                f"{path}: has other folds or classes than {paths[0]}; give runs of one series"
            )
        _check_finished(path)
        found.setdefault(validation["fold"], []).append(path)
    assert series is not None
    if missing := [str(i) for i in range(series[0]["folds"]) if i not in found]:
        raise FileNotFoundError(
            f"{paths[0].parent.parent}: there is no run of fold {join_some(missing)}; train all "
            f"{series[0]['folds']} folds, or give the config"
        )
    return [Fold(i, found[i]) for i in sorted(found)]


def _check_finished(best: Path) -> None:
    last = best.with_name("last.pt")
    contents = load_checkpoint(last if last.exists() else best)
    settings, history = contents["config"]["train"], contents["progress"]["history"]
    epochs = history[-1]["epoch"] if history else 0
    if epochs < settings["epochs"] and settings["patience"] is None:
        raise ValueError(
            f"{best.parent}: got {epochs} of {settings['epochs']} epochs, expected a finished run; "
            f"finish it with: unet train {best.parent / 'config.yaml'} --resume"
        )


class Predicted(NamedTuple):
    """An image that a model has predicted which has not seen it; arrays are compressed."""

    pair: Pair
    size: tuple[int, int]
    num_classes: int
    probabilities: bytes  # 255 p, (K, H, W) uint8
    target: bytes  # (H, W) uint8
    look: str  # size, and whether the image is coloured, dark or bright

    @staticmethod
    def of(pair: Pair, image: Tensor, logits: Tensor, target: np.ndarray) -> "Predicted":
        """Compress the probabilities of logits (K, H, W)."""
        p = (logits.softmax(0) * 255).round().byte().cpu().numpy()
        height, width = target.shape
        return Predicted(
            pair,
            (height, width),
            len(p),
            zlib.compress(p.tobytes(), 1),
            zlib.compress(target.astype(np.uint8).tobytes(), 1),
            f"{_describe_tone(image)}, {height} x {width}",
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return 255 p (K, H, W) and class ids (H, W), uint8."""
        p = np.frombuffer(zlib.decompress(self.probabilities), np.uint8)
        ids = np.frombuffer(zlib.decompress(self.target), np.uint8)
        return p.reshape(self.num_classes, *self.size), ids.reshape(self.size)


def _describe_tone(image: Tensor) -> str:
    pixels = image.numpy()
    mean = np.nan_to_num([np.nanmean(one) for one in pixels.reshape(len(pixels), -1)])
    colour = ""
    if len(pixels) == 3:
        colour = "coloured, " if np.nanmean(np.ptp(pixels, axis=0)) > 0.05 else "grey, "
    return f"{colour}{'bright' if mean.mean() > 0.5 else 'dark'}"


@worker_errors()
def predict_folds(
    folds: Sequence[Fold], overrides: Overrides = ()
) -> tuple[Model, list[Predicted]]:
    """Predict the images of every fold with its models; also return the last model.

    Raises:
        FileNotFoundError: if an image or mask is missing.
        ValueError: if a file cannot be read.
    """
    results: dict[str, Predicted] = {}
    for number, checkpoints in folds:
        model = load_model(checkpoints, overrides=overrides)
        pairs = validation_pairs(model, instances=False)
        for i, image, logits, target in predict_pairs(model, pairs, f"fold {number}"):
            results[pairs[i].stem] = Predicted.of(pairs[i], image, logits, target.numpy())
    every = list_pairs(model.config)[0]
    if new := [pair.stem for pair in every if pair.stem not in results]:
        print(
            f"warning: {plural(len(new), 'image')} in no fold, such as {new[0]}: added since the "
            "training, and not reviewed"
        )
    return model, list(results.values())
