"""Several runs of one config: every fold of a cross-validation, several seeds."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from unet.checkpoint import load_checkpoint
from unet.config.schema import Config
from unet.runtime import distributed
from unet.runtime.files import atomic_path
from unet.runtime.text import table
from unet.training.train import train


def train_series(
    config: Config, all_folds: bool = False, resume: bool = False, overwrite: bool = False
) -> Path:
    """Train `train.seeds` models, or one of every fold, or both; report each and the mean.

    Args:
        config: of all runs; each has its name with _fold0 or _seed0 behind it.
        all_folds: whether to train each of `data.validation.folds`.
        resume: whether to continue the runs that are there.
        overwrite: whether to delete runs of the same names first.

    Returns:
        The table written, runs/<name>_folds.csv or runs/<name>_seeds.csv.

    Raises:
        Exception: those of `train`.
    """
    configs, runs = configs_of_series(config, all_folds), []
    for i, one in enumerate(configs):
        print(f"\nrun {i + 1} of {len(configs)}: {one.name}\n")
        runs.append(train(one, resume, overwrite))
    path = Path(config.runs) / f"{config.name}_{'folds' if all_folds else 'seeds'}.csv"
    if distributed.rank() == 0:
        rows = [_best(run) for run in runs]
        columns = [key for key in rows[0] if key not in ("run", "epoch")]
        values = np.array([[row[key] for key in columns] for row in rows])
        # A fold without any pixel of a class has no score for it, and no part in the mean.
        mean, spread = np.nanmean(values, 0), np.nanstd(values, 0, ddof=1)
        rows.append({"run": "mean", "epoch": "", **dict(zip(columns, mean.tolist(), strict=True))})
        rows.append(
            {"run": "spread", "epoch": "", **dict(zip(columns, spread.tolist(), strict=True))}
        )
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"\n{_report(rows)}\nspread: standard deviation over the runs\nwrote {path}")
        print(f"next:     unet predict {runs[0].parent / config.name}_*/best.pt IMAGES -o masks")
    return path


def configs_of_series(config: Config, all_folds: bool) -> list[Config]:
    """Return the config of every run of a series, in order."""
    validation, settings = config.data.validation, config.train
    if all_folds and validation.folds is None:
        raise ValueError(
            "--folds: expected data.validation.folds, the number of parts, such as "
            "data.validation='{folds: 5}'"
        )
    folds = range(validation.folds or 1) if all_folds else [None]
    configs = []
    for fold, i in product(folds, range(settings.seeds)):
        seed = settings.seed + i
        name = config.name
        data = config.data
        if fold is not None:
            name += f"_fold{fold}"
            data = replace(data, validation=replace(validation, fold=fold))
        if settings.seeds > 1:
            name += f"_seed{seed}"
        configs.append(
            replace(config, name=name, data=data, train=replace(settings, seed=seed, seeds=1))
        )
    return configs


def _best(run: Path) -> dict[str, Any]:
    """The scores of a run's best.pt."""
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    best = max(history, key=lambda row: float(row["mean_iou"]))
    scores = {
        key: value
        for key, value in best.items()
        if key in ("mean_iou", "mean_dice", "pixel_accuracy") or key.startswith("iou_")
    }
    return {"run": run.name, "epoch": best["epoch"], **scores}


def _report(rows: Sequence[dict[str, Any]]) -> str:
    shown = ("mean_iou", "mean_dice", "pixel_accuracy")
    return table(
        [
            ("run", "best epoch", *(key.replace("_", " ").replace("iou", "IoU") for key in shown)),
            *(
                (row["run"], str(row["epoch"]), *(f"{row[key]:.4f}" for key in shown))
                for row in rows
            ),
        ]
    )
