"""Fixtures: a tiny data set, a folder to work in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import shrink_encoders, write_pairs
from torchvision.models import get_model

from unet.runtime.optional import is_installed
from unet.training.duration import Costs, measure_costs

# Sums of floats depend on the number of threads: tests, fixtures and the processes that they start
# have one thread each. With pytest-xdist, each core runs one test.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Undo `torch.set_num_threads` of another test."""
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """With pytest-xdist, run each file in one process, so that its tests share their fixtures."""
    if config.getoption("dist", "no") == "load":
        config.option.dist, config.option.loadscopereorder = "loadfile", False


@pytest.fixture(scope="session", autouse=True)
def _plain_trainings() -> Iterator[None]:
    """Skip most of the time of a tiny training: curves, TensorBoard, and the timing of its steps.

    For the whole session, as fixtures that several tests share train, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet.training.logger.is_installed", lambda _: False)
        patch.setattr("unet.training.train.measure_costs", lambda *_: Costs(0.1, 1.0))
        yield


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings in this process write curves.png and tensorboard/."""
    monkeypatch.setattr("unet.training.logger.is_installed", is_installed)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings in this process time their steps."""
    monkeypatch.setattr("unet.training.train.measure_costs", measure_costs)


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_pairs(root, 6)
    return root


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of the test's own: runs/ is relative."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def encoder_weights(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with weights of an encoder, as torchvision has them; encoders are small."""
    shrink_encoders(monkeypatch)
    torch.manual_seed(7)
    torch.save(get_model("efficientnet_b0", weights=None).state_dict(), "weights.pth")
    return Path("weights.pth")
