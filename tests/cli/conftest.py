"""Fixtures of the tests of the command line."""

from pathlib import Path

import pytest
import yaml
from helpers import make_config

from unet.config.values import config_to_dict


@pytest.fixture
def config(data_root: Path) -> Path:
    path = data_root.parent / "tiny.yaml"
    settings = config_to_dict(make_config(data_root, "train.epochs=2"))
    path.write_text(yaml.safe_dump(settings))
    return path
