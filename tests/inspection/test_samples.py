from pathlib import Path

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, make_config, write_instances
from PIL import Image

from unet.inspection.check import check_data
from unet.inspection.samples import draw_samples

pytestmark = pytest.mark.usefixtures("workdir")

BORDER = ("data.instances=instances", "loss.border={sigma: 3}")


def test_samples_are_drawn(data_root: Path, tmp_path: Path) -> None:
    config = make_config(data_root)
    draw_samples(config, check_data(config), tmp_path / "samples.png", count=3)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.height > 3 * 256
        assert picture.width > 4 * 256
        pixels = np.asarray(picture).astype(int)
    # In every panel with a mask, bright pixels have the colour of the class.
    box = np.array([230, 159, 0])
    coloured = np.abs(pixels[60:, 400:] - (box + 255) // 2).sum(2) < 120
    assert coloured.mean() > 0.05


def test_border_weights_are_drawn_in_the_samples(data_root: Path, tmp_path: Path) -> None:
    write_instances(data_root)
    widths = []
    for overrides in ((), BORDER):
        config = make_config(data_root, *overrides)
        draw_samples(config, check_data(config), tmp_path / "samples.png", count=2)
        with Image.open(tmp_path / "samples.png") as picture:
            widths.append(picture.width)
    assert widths[1] - widths[0] == 8 + round(256 * (WIDTH / HEIGHT) ** 0.5)
