"""One run for all tests of evaluation, which do not change it."""

from contextlib import chdir
from pathlib import Path

import pytest
import torch
from helpers import make_config, write_pairs

from unet.evaluation.evaluate import evaluate
from unet.training.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ of six pairs and the checkpoint best.pt, which ignores the value 7."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    write_pairs(folder / "data", 6)
    settings = ("train.epochs=4", "train.previews=0", "data.ignore=[7]")
    with chdir(folder):
        best = train(make_config(folder / "data", *settings)) / "best.pt"
        best.rename("best.pt")
    return folder


@pytest.fixture(scope="session")
def best(trained: Path) -> Path:
    return trained / "best.pt"


@pytest.fixture(scope="session")
def evaluated(trained: Path) -> Path:
    """The results of the validation split."""
    evaluate(trained / "best.pt", out=trained / "scores")
    return trained / "scores"
