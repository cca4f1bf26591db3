"""Several runs of one config: every fold of a cross-validation, several seeds, or both."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from unet.checkpoint import load_checkpoint
from unet.config.schema import Config
from unet.config.values import configs_of_folds
from unet.metrics.monitor import best_row, score_title
from unet.runtime import distributed
from unet.runtime.files import write_csv
from unet.runtime.text import format_table
from unet.training.train import train


def train_series(
    config: Config,
    all_folds: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    proposal: str | None = None,
) -> Path:
    """Train `train.seeds` models, for one fold or each; print and write their best scores.

    The runs are named <name>_fold0, <name>_seed0 or <name>_fold0_seed0. Returns the table,
    <runs>/<name>_folds.csv or <runs>/<name>_seeds.csv. For the rest see `train`.
    """
    configs, runs = configs_of_series(config, all_folds), []
    for i, one in enumerate(configs):
        print(f"\nrun {i + 1} of {len(configs)}: {one.name}\n")
        runs.append(train(one, resume=resume, overwrite=overwrite, proposal=proposal))
    path = Path(config.runs) / f"{config.name}_{'folds' if all_folds else 'seeds'}.csv"
    if distributed.rank() == 0:
        monitor = config.train.monitor
        rows = [_best_scores(run, monitor) for run in runs]
        columns = [key for key in rows[0] if key not in ("run", "epoch")]
        values = np.array([[row[key] for key in columns] for row in rows])
        # A class without any pixel in a fold has no score there, and the mean ignores it.
        mean, std = np.nanmean(values, 0), np.nanstd(values, 0, ddof=1)
        for name, numbers in (("mean", mean), ("std", std)):
            scores = dict(zip(columns, numbers.tolist(), strict=True))
            rows.append({"run": name, "epoch": "", **scores})
        write_csv(path, rows)
        print(f"\n{_text(rows, monitor)}\nstd: standard deviation over the runs\nwrote {path}")
        pattern = f"{config.name}_{'fold' if all_folds else 'seed'}*"
        print(f"predict:  unet predict {path.with_name(pattern)}/best.pt IMAGES")
    return path


def configs_of_series(config: Config, all_folds: bool) -> list[Config]:
    """Return the config of every run, in order."""
    settings, configs = config.train, []
    folds = configs_of_folds(config) if all_folds else [config]
    for one, i in product(folds, range(settings.seeds)):
        seed = settings.seed + i
        name = f"{one.name}_seed{seed}" if settings.seeds > 1 else one.name
        configs.append(replace(one, name=name, train=replace(settings, seed=seed, seeds=1)))
    return configs


def _best_scores(run: Path, monitor: str) -> dict[str, Any]:
    best = best_row(load_checkpoint(run / "last.pt")["progress"]["history"], monitor)
    other = ("step", "lr", "train_loss", "skipped_steps", "seconds", f"raw_{monitor}")
    return {"run": run.name} | {key: best[key] for key in best if key not in other}


def _text(rows: Sequence[dict[str, Any]], monitor: str) -> str:
    scores = dict.fromkeys(("mean_iou", "mean_dice", "pixel_accuracy", monitor))
    shown = [name for name in scores if name in rows[0]]  # none without validation pairs
    lines = [("run", "best epoch", *map(score_title, shown))]
    lines += [
        (row["run"], str(row["epoch"]), *(f"{row[key]:.4f}" for key in shown)) for row in rows
    ]
    return format_table(lines)
