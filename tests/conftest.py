"""A tiny data set, and runs on it."""

import csv
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torchvision.models import get_model

from unet.checkpoint import SegmentationModel, build_net, load_checkpoint
from unet.config import Config
from unet.config_file import config_from_dict
from unet.data import Normalization
from unet.encoders import Encoder
from unet.model import UNet

HEIGHT, WIDTH = 36, 52

PLACE = {
    "crs": "EPSG:32632",
    "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
}


@pytest.fixture(autouse=True)
def _fixed_threads() -> None:
    """Sums of floats depend on the number of threads: keep it the same in every test."""
    torch.set_num_threads(1)


def draw_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright rectangle (mask value 200) on a dark, noisy ground (mask value 0)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = rng.integers(4, 12), rng.integers(4, 20)
    mask[top : top + 16, left : left + 20] = 200
    image = np.where(mask > 0, 170, 80) + rng.normal(0, 10, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def write_pairs(root: Path, count: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image, mask = draw_pair(rng)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")


def write_instances(root: Path) -> None:
    """Number the two halves of each box, which touch: label images beside the masks."""
    (root / "instances").mkdir()
    for path in (root / "masks").iterdir():
        with Image.open(path) as mask:
            inside = np.asarray(mask) == 200
        columns = np.arange(WIDTH)
        left = columns < columns[inside.any(0)].mean()
        Image.fromarray(np.where(inside, np.where(left, 1, 300), 0).astype(np.uint16)).save(
            root / "instances" / path.name
        )


def draw(*shape: int) -> np.ndarray:
    """Waves and noise: uint8 of a shape, such as (H, W)."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.sin(np.arange(shape[-2]) / 9), np.cos(np.arange(shape[-1]) / 7))
    return (smooth * 40 + rng.normal(120, 30, shape)).clip(1, 255).astype(np.uint8)


def write_raster(path: str, pixels: np.ndarray, **profile: Any) -> Path:
    """Write (H, W) or (bands, H, W) as a GeoTIFF."""
    bands = pixels.reshape(-1, *pixels.shape[-2:])
    settings = {"driver": "GTiff", "dtype": pixels.dtype.name, "count": len(bands), **PLACE}
    settings |= {"height": bands.shape[1], "width": bands.shape[2], **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as file:
            file.write(bands)
    return Path(path)


def write_tiffs_that_windows_cannot_read() -> None:
    """a.tif with a palette, b.tif turned by its EXIF orientation, c.tif of two pages."""
    write_raster("a.tif", draw(40, 30), photometric="palette")
    with rasterio.open("a.tif", "r+") as file:
        file.write_colormap(1, {0: (1, 2, 3), 255: (4, 5, 6)})
    page = Image.fromarray(draw(40, 30))
    page.save("b.tif", tiffinfo={274: 6})
    page.save("c.tif", save_all=True, append_images=[page])


def write_width_as_text(path: Path) -> None:
    """Damage a TIFF of Pillow's: the tag 256 of type LONG (4) becomes one of type ASCII (2)."""
    path.write_bytes(path.read_bytes().replace(b"\0\1\4\0", b"\0\1\2\0", 1))


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_pairs(root, 6)
    return root


def make_config(root: Path, *overrides: str) -> Config:
    return config_from_dict(
        {
            "name": "tiny",
            "data": {
                "root": str(root),
                "classes": {"ground": 0, "box": 200},
                "validation": {"fraction": 0.34},
            },
            "augment": {
                "crop": [24, 32],
                "flip_horizontal": True,
                "rotate": 5,
                "elastic_std": 1,
                "brightness": 0.1,
                "contrast": 0.1,
            },
            "model": {"in_channels": 1, "widths": [4, 8]},
            "optimizer": {"lr": 0.01},
            "train": {"epochs": 3, "batch_size": 2, "num_workers": 0},
        },
        overrides,
    )


def small_config(*overrides: str) -> Config:
    """A config with little in it, of data that is not there."""
    return config_from_dict(
        {
            "name": "mine",
            "data": {
                "root": "somewhere",
                "classes": {"ground": 0, "cell": 255},
                "validation": {"fraction": 0.2},
            },
            "train": {"epochs": 5},
        },
        overrides,
        where="mine.yaml",
    )


def make_model(root: Path) -> SegmentationModel:
    """An untrained model of the tiny data."""
    config = make_config(root)
    return SegmentationModel(
        net=build_net(config, torch.device("cpu")),
        config=config,
        normalization=Normalization(mean=(0.4,), std=(0.2,)),
        val_stems=("0", "4"),
        palette=None,
        device=torch.device("cpu"),
    )


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of the test's own: runs/ is relative."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def states_equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(
            states_equal(a[k], b[k]) for k in a if k not in ("seconds", "name")
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        whole, parts = (load_checkpoint(run / name) for run in (one, other))
        assert whole.keys() == parts.keys()
        for part in whole:
            assert states_equal(whole[part], parts[part]), (name, part)
    tables = []
    for run in (one, other):
        with (run / "metrics.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert [path.name for path in sorted(one.rglob("*.png"))] == [
        path.name for path in sorted(other.rglob("*.png"))
    ]


PAPER = (
    "model={in_channels: 1, widths: [4, 8], norm: none, padding: valid, dropout: 0.5}",
    "augment.crop=[36, 44]",
)

ENCODER = ["model={encoder: efficientnet_b0, widths: [4, 4, 4, 4, 4], in_channels: 1}"]


@pytest.fixture
def encoder_weights() -> Path:
    """As torchvision has them, which lie in a file."""
    torch.manual_seed(7)
    torch.save(get_model("efficientnet_b0", weights=None).state_dict(), "weights.pth")
    return Path("weights.pth")


ENCODERS = sorted({*get_args(Encoder)} - {"none", "resnet101", "convnext_small"})


def with_encoder(encoder: str, **settings: object) -> UNet:
    """A small network whose encoder is one of torchvision's."""
    torch.manual_seed(0)
    widths = (4, 6, 8, 8) if encoder.startswith("convnext") else (4, 4, 6, 8, 8)
    return UNet(num_classes=2, widths=widths, encoder=encoder, **settings)
