"""Fixtures of the tests of prediction."""

from pathlib import Path

import pytest
import torch
from helpers import make_model

from unet.checkpoint import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained network that draws both classes."""
    torch.manual_seed(3)
    model = make_model(tmp_path)
    torch.nn.init.normal_(model.net.head.weight)
    path = tmp_path / "best.pt"
    save_checkpoint(path, model.contents())
    return path
