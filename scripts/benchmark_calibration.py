"""Measure on the validation images of a checkpoint what its calibration is worth on other images.

The images are halved at random: temperature and threshold are fitted on one half and measured on
the other. A promise holds if at most the promised fraction of the pixels of the second class is
missed in an image of the other half, drawn at random.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benchmarking import make_parser
from torch import Tensor

from unet.config.loader import config_from_dict
from unet.data.synthetic import draw_quickstart
from unet.evaluation.evaluate import validation_pairs
from unet.evaluation.scoring import predict_pairs
from unet.inference.loading import load_predictor
from unet.metrics.calibration import (
    FEWEST_IMAGES,
    calibration_errors,
    fit_temperature,
    largest_threshold,
    promised_threshold,
    reliability_counts,
)
from unet.training.train import train


def measure(checkpoint: Path, settings: list[str], splits: int, max_missed: float) -> None:
    """Print the calibration error before and after, and how often the promise holds."""
    model = load_predictor(checkpoint, None, settings)
    pairs = validation_pairs(model, instances=False)
    predicted = predict_pairs(model, pairs, "predict")
    images = [(logits.cpu().clone(), target) for _, _, logits, target in predicted]
    limits = np.array([_threshold(*image, max_missed) for image in images])
    errors, kept, fractions = [], [], []
    for seed in range(splits):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(images))
        fitted, held_out = np.array_split(order, 2)
        if seed < 5:
            temperature = _fit([images[i] for i in fitted], len(model.classes.names))
            others = [images[i] for i in held_out]
            errors.append([_error(others, t) for t in (1.0, temperature)])
        known, new = (limits[some][~np.isnan(limits[some])] for some in (fitted, held_out))
        threshold = promised_threshold(known.tolist())
        if threshold is not None and len(new):
            kept.append(rng.choice(new) >= threshold)
            fractions.append(np.mean(new >= threshold))
    before, after = np.mean(errors, axis=0)
    print(
        f"{len(images)} images, {len(errors)} halves: expected calibration error {before:.4f} "
        f"before, {after:.4f} after (highest {np.max(errors, axis=0)[1]:.4f})"
    )
    if kept:
        print(
            f"the promise held in {sum(kept)} of {len(kept)} splits, and for "
            f"{100 * np.mean(fractions):.1f} % of all held-out images"
        )
    else:
        print(f"no promise: half of the images is less than {FEWEST_IMAGES}")


def _fit(images: list[tuple[Tensor, Tensor]], num_classes: int) -> float:
    counted = [target < num_classes for _, target in images]
    both = list(zip(images, counted, strict=True))
    logits = torch.cat([logits[:, some].T[::4] for (logits, _), some in both])
    target = torch.cat([target[some][::4].long() for (_, target), some in both])
    return fit_temperature(logits, target)


def _error(images: list[tuple[Tensor, Tensor]], temperature: float) -> float:
    counts = [reliability_counts((logits / temperature).softmax(0), t) for logits, t in images]
    return calibration_errors(np.sum(counts, axis=0))[-1]


def _threshold(logits: Tensor, target: Tensor, max_missed: float) -> float:
    """The largest threshold of the second class that keeps the promise; NaN without the class."""
    pixels = logits.softmax(0)[1][target == 1]
    return largest_threshold(pixels, max_missed) if len(pixels) else float("nan")


def main(argv: list[str] | None = None) -> int:
    """Measure one checkpoint."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a best.pt")
    parser.add_argument("settings", nargs="*", help="changes of its config")
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--max-missed", type=float, default=0.05)
    arguments: argparse.Namespace = parser.parse_args(argv)
    if not arguments.quick:
        measure(arguments.checkpoint, arguments.settings, arguments.splits, arguments.max_missed)
        return 0
    with TemporaryDirectory() as folder:
        draw_quickstart(Path(folder, "data"), num_images=8)
        data = {
            "root": f"{folder}/data",
            "images": "images",
            "masks": "masks",
            "classes": {"background": 0, "shape": "80, 160, 240"},
            "validation": {"fraction": 0.5},
        }
        quick = {
            "name": "quick",
            "runs": folder,
            "data": data,
            "train": {"epochs": 1, "num_workers": 0},
        }
        config = config_from_dict({**quick, "model": {"in_channels": 1, "widths": [4, 8]}})
        measure(train(config) / "best.pt", [], 5, arguments.max_missed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
