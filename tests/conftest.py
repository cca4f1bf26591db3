"""Fixtures: a tiny data set, a folder to work in."""

import os
from pathlib import Path

import pytest
import torch
from helpers import write_pairs
from torchvision.models import get_model

# Sums of floats depend on the number of threads: tests, fixtures and the processes that they start
# have one thread each. With pytest-xdist, each core runs one test.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Undo `torch.set_num_threads` of another test."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_logs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip curves and TensorBoard, most of the time of a tiny training, unless `extras` is used."""
    if "extras" not in request.fixturenames:
        monkeypatch.setattr("unet.training.logger.is_installed", lambda _: False)


@pytest.fixture
def extras() -> None:
    """Let trainings in this process write curves.png and tensorboard/."""


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
def encoder_weights() -> Path:
    """As torchvision has them, which lie in a file."""
    torch.manual_seed(7)
    torch.save(get_model("efficientnet_b0", weights=None).state_dict(), "weights.pth")
    return Path("weights.pth")
