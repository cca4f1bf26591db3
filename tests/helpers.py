"""A tiny data set, small configs and networks."""

import csv
import json
import struct
import warnings
import zlib
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._api import BUILTIN_MODELS
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from unet.build import build_network
from unet.checkpoint import load_checkpoint
from unet.config.loader import config_from_dict
from unet.config.schema import Config
from unet.data.image_range import ImageRange
from unet.data.normalization import Normalization
from unet.inference.predictor import Predictor
from unet.models.encoder_specs import ENCODER_SPECS, encoder_spec
from unet.models.unet import UNet

HEIGHT, WIDTH = 36, 52


PLACE = {
    "crs": "EPSG:32632",
    "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
}


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
            "train": {
                "epochs": 3,
                "batch_size": 2,
                "num_workers": 0,
                "precision": "float32",
                "previews": 0,  # to draw them takes half as long as to train
            },
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


def make_model(root: Path, *overrides: str) -> Predictor:
    """An untrained model of the tiny data."""
    config = make_config(root, *overrides)
    return Predictor(
        net=build_network(config, torch.device("cpu")),
        config=config,
        normalization=Normalization(mean=(0.4,), std=(0.2,)),
        image_range=ImageRange(dtypes=("uint8",), mean=(0.3, 0.5), std=(0.1, 0.3)),
        val_stems=("0", "4"),
        palette=None,
        device=torch.device("cpu"),
    )


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


ENCODERS = sorted({*ENCODER_SPECS} - {"resnet101", "convnext_small"})


def with_encoder(encoder: str, **settings: object) -> UNet:
    """A small network whose encoder is one of torchvision's or timm's."""
    torch.manual_seed(0)
    widths = (4, 4, 6, 8, 8)[-len(encoder_spec(encoder).channels) :]
    return UNet(num_classes=2, widths=widths, encoder=encoder, **settings)


def shrink_encoders(patch: pytest.MonkeyPatch) -> None:
    """Make encoders of torchvision with one block of each type, few channels and few levels."""

    def convnext(**_: object) -> nn.Module:
        return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)])

    def mobilenet(**_: object) -> nn.Module:
        blocks = (8, 3, 8, 8, False, "RE", 1), (8, 3, 16, 16, True, "HS", 2)
        return MobileNetV3(
            [InvertedResidualConfig(*block, dilation=1, width_mult=1.0) for block in blocks],
            last_channel=32,
        )

    def efficientnet(**_: object) -> nn.Module:
        stages = ((1, 3, 1, 8, 8), (2, 3, 2, 8, 8), (2, 5, 2, 8, 16), (2, 3, 2, 16, 16),
                  (2, 5, 1, 16, 16), (2, 5, 2, 16, 24), (2, 3, 1, 24, 24))  # fmt: skip
        return EfficientNet([MBConvConfig(*stage, num_layers=1) for stage in stages], dropout=0.2)

    for name, build, stages, channels in (
        ("convnext_tiny", convnext, (1, 3), (8, 16)),
        ("mobilenet_v3_large", mobilenet, (1, 2), (8, 16)),
        ("efficientnet_b0", efficientnet, (1, 2, 3, 5, 7), (8, 8, 16, 16, 24)),
    ):
        nodes, spec = tuple(f"features.{i}" for i in stages), ENCODER_SPECS[name]
        small = replace(spec, nodes=nodes, channels=channels, levels=spec.levels[: len(nodes)])
        # The weights of a name are found by the signature of its function.
        patch.setitem(BUILTIN_MODELS, name, wraps(BUILTIN_MODELS[name])(build))
        patch.setitem(ENCODER_SPECS, name, small)


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """Write 16-bit RGB, or grey and alpha, which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(
            b"IHDR",
            struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[pixels.shape[2]], 0, 0, 0),
        )
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class TheirDoubleConv(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class TheirDown(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), TheirDoubleConv(channels, out))


class TheirUp(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, out, 2, stride=2)
        self.conv = TheirDoubleConv(2 * out, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        bottom, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class TheirOut(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)


class TheirUNet(nn.Module):
    """With `shallow` channels at the full image, theirs 64."""

    def __init__(self, channels: int, classes: int, shallow: int = 4) -> None:
        super().__init__()
        widths = [shallow * 2**i for i in range(5)]
        self.inc = TheirDoubleConv(channels, widths[0])
        for i in range(4):
            setattr(self, f"down{i + 1}", TheirDown(widths[i], widths[i + 1]))
            setattr(self, f"up{i + 1}", TheirUp(widths[4 - i], widths[3 - i]))
        self.outc = TheirOut(widths[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.inc(x)]
        for i in range(4):
            features.append(getattr(self, f"down{i + 1}").maxpool_conv(features[-1]))
        x = features.pop()
        for i in range(4):
            x = getattr(self, f"up{i + 1}")(x, features.pop())
        return self.outc.conv(x)


def their_net(channels: int = 3, classes: int = 2, shallow: int = 4) -> TheirUNet:
    """One whose batch norms have statistics, as after a training."""
    torch.manual_seed(0)
    net = TheirUNet(channels, classes, shallow)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for numbers in (module.weight.data, module.running_var):
                numbers.uniform_(0.5, 2)
            for numbers in (module.bias.data, module.running_mean):
                numbers.normal_()
    return net.eval().requires_grad_(False)


def files_in(folder: str | Path) -> list[str]:
    """All files in a folder and its subfolders."""
    paths = (path for path in Path(folder).rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def values_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def metrics_of(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "metrics.json").read_text())
