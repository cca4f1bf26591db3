import csv
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import make_config

from unet.checkpoint import load_checkpoint
from unet.training.series import configs_of_series, train_series

pytestmark = pytest.mark.usefixtures("workdir")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_seeds_are_trained_and_their_mean_and_std_printed(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, "train.seeds=3", "train.seed=4", "train.epochs=2")
    rows = read(train_series(config))
    assert [row["run"] for row in rows] == [
        "tiny_seed4", "tiny_seed5", "tiny_seed6", "mean", "std",
    ]  # fmt: skip
    states = [load_checkpoint(Path(f"runs/tiny_seed{seed}/last.pt")) for seed in (4, 5, 6)]
    best = [max(row["mean_iou"] for row in state["progress"]["history"]) for state in states]
    assert [float(row["mean_iou"]) for row in rows[:3]] == pytest.approx(best)
    assert float(rows[3]["mean_iou"]) == pytest.approx(np.mean(best))
    assert float(rows[4]["mean_iou"]) == pytest.approx(np.std(best, ddof=1))
    assert len(set(best)) == 3
    assert len({tuple(state["val_stems"]) for state in states}) == 1  # the split stays
    shown = capsys.readouterr().out
    assert re.search(rf"^mean +{np.mean(best):.4f} ", shown, re.MULTILINE)
    assert "unet predict runs/tiny_seed*/best.pt IMAGES" in shown
    # And what is done is not done again.
    times = [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/last.pt"))]
    train_series(config, resume=True)
    assert times == [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/last.pt"))]


def test_every_fold_is_trained(data_root: Path) -> None:
    config = make_config(data_root, "data.validation={folds: 3, fold: 0}", "train.epochs=1")
    rows = read(train_series(config, all_folds=True))
    assert [row["run"] for row in rows] == [
        "tiny_fold0", "tiny_fold1", "tiny_fold2", "mean", "std",
    ]  # fmt: skip
    held_out = [
        stem
        for fold in range(3)
        for stem in load_checkpoint(Path(f"runs/tiny_fold{fold}/last.pt"))["val_stems"]
    ]
    assert sorted(held_out) == list("012345")


def test_folds_and_seeds_together(data_root: Path) -> None:
    config = make_config(data_root, "data.validation={folds: 2, fold: 0}", "train.seeds=2")
    assert [one.name for one in configs_of_series(config, all_folds=True)] == [
        "tiny_fold0_seed0",
        "tiny_fold0_seed1",
        "tiny_fold1_seed0",
        "tiny_fold1_seed1",
    ]


def test_all_folds_need_data_validation_folds(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"expected data\.validation\.folds"):
        configs_of_series(make_config(data_root), all_folds=True)
