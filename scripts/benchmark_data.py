"""Compare the speed of our augmented samples with a plain loop over torchvision's transforms.

Both read the same files, apply the same augmentation and collate batches, each with one thread as
in a worker of a DataLoader. The plain loop transforms whole images and crops last. Cropping first
is faster, but leaves black corners in rotated images. The augmentation is that of the config, with
the elastic deformation of configs/isbi2012.yaml for both data sets.

The last lines compare samples of 256 x 256 pixels out of images of that size and out of large ones,
from the cache and from tiled GeoTIFFs (needs rasterio, tifffile and imagecodecs).

All candidates run in turn in one process, so that a noisy machine slows all of them down equally.
Compare the columns of one row, not rows of two runs.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from benchmarking import make_parser, time_in_turns
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from unet.build import build_reader, list_pairs
from unet.config.data_schema import AugmentConfig
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.data.augmentation import Augmentation
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization, normalization_from_sums
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.data.sampler import SeededBatchSampler
from unet.inspection.statistics import collect_statistics

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("isbi2012", "camvid")
IMAGES = 32
CROPS = 8  # per image in a round of ours, which is too short to measure otherwise
ELASTIC_STD = 4.0  # pixels, as in configs/isbi2012.yaml


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks with torchvision's transforms."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: Config,
        augment: AugmentConfig,
        normalization: Normalization,
        crop_first: bool,
    ) -> None:
        assert augment.crop is not None
        self.pairs = pairs
        self.mode = "L" if config.model.in_channels == 1 else "RGB"
        # Both data sets have one 8-bit value for each class.
        self.ids = torch.full((256,), 255)
        for i, value in enumerate(config.data.classes.values()):
            self.ids[value] = i
        crop = v2.RandomCrop(augment.crop)
        steps: list[torch.nn.Module] = [crop] if crop_first else []
        if augment.flip_horizontal:
            steps.append(v2.RandomHorizontalFlip())
        if augment.flip_vertical:
            steps.append(v2.RandomVerticalFlip())
        if augment.quarter_turns:
            steps.append(
                v2.RandomChoice([v2.RandomRotation((turn, turn)) for turn in (0, 90, 180, 270)])
            )
        if augment.rotate or augment.scale != (1.0, 1.0):
            steps.append(
                v2.RandomAffine(
                    augment.rotate,
                    scale=augment.scale,
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill={tv_tensors.Image: 0, tv_tensors.Mask: 255},
                )
            )
        if augment.elastic_std:
            # With torchvision's default smoothness of 5 pixels and displacements as large as ours.
            # A deformation as smooth as ours would take several times as long.
            alpha = 2 * augment.elastic_std * (12 * np.pi) ** 0.5 * 5
            steps.append(v2.ElasticTransform(alpha, 5.0))
        self.transforms = v2.Compose(
            [
                *steps,
                *([] if crop_first else [crop]),
                v2.ColorJitter(augment.brightness, augment.contrast),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(normalization.mean.tolist(), normalization.std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        image = v2.functional.to_image(Image.open(pair.images[0]).convert(self.mode))
        mask = tv_tensors.Mask(Image.open(pair.masks[0]))
        image, mask = self.transforms(image, mask)
        return image, self.ids[mask[0].long()]


def make_loaders(config: Config, images: int, crops: int) -> dict[str, DataLoader]:
    """Make ours from cache, from files and with two workers, and the plain loop in two orders."""
    pairs, errors = list_pairs(config)
    pairs = pairs[:: max(1, len(pairs) // images)][:images]
    reader = build_reader(config)
    _, found, unreadable, other_errors, _ = collect_statistics(pairs, reader)
    if messages := [*errors, *unreadable, *other_errors]:
        raise ValueError("\n".join(messages))
    normalization = normalization_from_sums(
        int(found.sizes.prod(1).sum()), found.sums.sum(0), found.squares.sum(0)
    )
    augment = replace(config.augment, elastic_std=ELASTIC_STD)
    batch_size = config.train.batch_size

    def ours(cache_bytes: float, num_workers: int = 0) -> DataLoader:
        dataset = SegmentationDataset(
            pairs,
            reader,
            normalization,
            Augmentation(**vars(augment)),
            crops_per_image=crops,
            cache=DecodedCache(pairs, reader, found.sizes, found.num_bytes, cache_bytes),
        )
        sampler = SeededBatchSampler(len(dataset), batch_size, 0, 0, len(dataset) // batch_size)
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )

    def plain(crop_first: bool) -> DataLoader:
        dataset = PlainDataset(pairs, config, augment, normalization, crop_first)
        return DataLoader(dataset, batch_size, shuffle=True)

    loaders = {
        "cache": ours(2**30),
        "files": ours(0),
        "workers": ours(2**30, num_workers=2),
        "plain": plain(crop_first=False),
        "crop first": plain(crop_first=True),
    }
    for loader in loaders.values():
        batch = next(iter(loader))
        assert [tensor.shape[-2:] for tensor in batch] == [augment.crop] * 2
        assert [tensor.dtype for tensor in batch] == [torch.float32, torch.int64]
    return loaders


def load_all(loader: DataLoader) -> int:
    """Load one round; return the number of samples."""
    return sum(len(images) for images, _ in loader)


def compare(name: str, root: Path, images: int, crops: int, rounds: int) -> None:
    """Print a row of the samples per second of one worker, and how they compare."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", [f"data.root={root}"])
    loaders = make_loaders(config, images, crops)
    # The first round includes the start of the workers.
    counts = {key: load_all(one) / max(1, one.num_workers) for key, one in loaders.items()}
    runs = {key: partial(load_all, one) for key, one in loaders.items()}
    times = time_in_turns(runs, rounds, torch.device("cpu"))
    speeds = {key: counts[key] / one.median for key, one in times.items()}
    columns = (
        f"{counts[key] / max(one.seconds):8.1f} {speeds[key]:8.1f}" for key, one in times.items()
    )
    print(f"{name:8} {' '.join(columns)}", flush=True)
    for ours, source in (("cache", "from the cache"), ("files", "from files")):
        ratios = [speeds[ours] / speeds[plain] for plain in ("plain", "crop first")]
        print(
            f"{'':8} {source}: {ratios[0]:.1f} times as fast as the plain loop, {ratios[1]:.1f} "
            "times as fast as the plain loop that crops first"
        )


def draw_raster(root: Path, side: int) -> None:
    """Write two pairs of square GeoTIFFs in tiles of 256 x 256 pixels."""
    rng = np.random.default_rng(0)
    settings = {"driver": "GTiff", "dtype": "uint8", "width": side, "height": side}
    settings |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    settings |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.2, 0, 5e5, 0, -0.2, 5e6)}
    for i in range(2):
        pixels = rng.integers(0, 256, (3, side // 8, side // 8), np.uint8).repeat(8, 1).repeat(8, 2)
        for folder, bands in (("images", pixels), ("masks", pixels[:1] // 128)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                root / folder / f"{i}.tif", "w", count=len(bands), **settings
            ) as file:
                file.write(bands)


def compare_sizes(root: Path, large: int, rounds: int) -> None:
    """Print the time of a sample out of large images, compared with that out of small ones."""
    reader = PairReader(classes=ClassMap({"dark": 0, "bright": 1}), in_channels=3)
    augmentations = {
        "crops and flips": Augmentation(crop=(256, 256), flip_horizontal=True),
        "rotation, scale and elastic deformation, too": Augmentation(
            crop=(256, 256),
            flip_horizontal=True,
            rotate=15,
            scale=(0.8, 1.25),
            elastic_std=ELASTIC_STD,
        ),
    }
    for side in (256, large):
        draw_raster(root / str(side), side)
    for name, augment in augmentations.items():
        candidates = {}
        for key, side, limit in (
            ("small", 256, 2**40),
            ("cache", large, 2**40),
            ("files", large, 0),
        ):
            pairs, _ = find_pairs(root / str(side), ["images"], "masks")
            sizes = np.full((2, 2), side)
            cache = DecodedCache(pairs, reader, sizes, 4 * sizes.prod(1), limit)
            normalization = Normalization(mean=(0.5,) * 3, std=(0.3,) * 3)
            dataset = SegmentationDataset(pairs, reader, normalization, augment, cache=cache)
            candidates[key] = partial(lambda one: [one[0, 0], one[0, 1]], dataset)
            candidates[key]()  # fills the cache
        times = time_in_turns(candidates, rounds, torch.device("cpu"))
        small = 500 * times["small"].median  # of two samples, in milliseconds
        cached, files = (
            statistics.median(times[key].ratios(times["small"])) for key in ("cache", "files")
        )
        print(
            f"{name}: a sample out of 256 x 256 pixels takes {small:.2f} ms, out of {large} x "
            f"{large} {cached:.2f} times as long from the cache and {files:.2f} times as long from "
            "tiled GeoTIFFs"
        )


def draw_noise(root: Path) -> None:
    """Write four small pairs for configs/isbi2012.yaml."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for i in range(4):
            pixels = 255 * rng.integers(0, 2, (200, 220), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{24 * (i // 2) + i}.png")


def main(argv: list[str] | None = None) -> int:
    """Print one table."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="contains isbi2012/ and camvid/ (default: data)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="counted rounds (default: 10)")
    arguments = parser.parse_args(argv)
    data, names = arguments.data, [name for name in NAMES if (arguments.data / name).is_dir()]
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; samples per second of one worker: minimum, median")
    print(
        f"{'':8} {'ours, from cache':>17} {'from files':>17} {'cache, 2 workers':>17} "
        f"{'plain loop':>17} {'cropping first':>17}"
    )
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            draw_noise(Path(folder) / "isbi2012")
            compare("isbi2012", Path(folder) / "isbi2012", images=4, crops=1, rounds=1)
            compare_sizes(Path(folder), large=512, rounds=1)
        return 0
    for name in names:
        compare(name, data / name, IMAGES, CROPS, arguments.repeats)
    for name in set(NAMES) - set(names):
        print(f"{name}: left out, because there is no folder {data / name}; see data/README.md")
    with tempfile.TemporaryDirectory() as folder:
        compare_sizes(Path(folder), large=4096, rounds=10 * arguments.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
