"""One run for all tests of evaluation, which do not change it."""

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config, write_pairs
from PIL import Image

from unet.evaluation.evaluate import evaluate
from unet.training.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ of six pairs and the checkpoint best.pt, which ignores the value 7."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    write_pairs(folder / "data", 6)
    settings = ("train.epochs=4", "data.ignore=[7]")
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


@pytest.fixture
def new(tmp_path: Path) -> dict[str, str]:
    """Five images; the mask of the last one is ignored."""
    write_pairs(tmp_path / "new", 5, seed=7)
    Image.fromarray(np.full((36, 52), 7, np.uint8)).save(tmp_path / "new" / "masks" / "4.png")
    return {"images": str(tmp_path / "new" / "images"), "masks": str(tmp_path / "new" / "masks")}


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the data of the run, which tests may change."""
    return Path(shutil.copytree(trained / "data", tmp_path / "copied"))
