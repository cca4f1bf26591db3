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


def test_images_with_missing_pixels_are_drawn_augmented_too() -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        Path("data", folder).mkdir(parents=True)
    for i in range(4):
        pixels = rng.normal(120, 20, (HEIGHT, WIDTH)).astype(np.float32)
        pixels[:5, :5] = np.nan
        Image.fromarray(pixels).save(f"data/images/{i}.tif")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[8:12] = 255
        Image.fromarray(mask).save(f"data/masks/{i}.png")
    classes = "data.classes={ground: 0, cell: 255}"
    config = make_config(Path("data"), classes, "model.in_channels=1")
    draw_samples(config, check_data(config), Path("samples.png"), count=1)
    with Image.open("samples.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    augmented = pixels[-100:, -200:-20]
    assert augmented.std() > 10
