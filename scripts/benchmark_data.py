"""Compare the speed of our augmented samples with a plain loop over torchvision's transforms.

Both read the same files, apply the same augmentation and collate batches, each with one thread as
in a worker of a DataLoader. The plain loop transforms whole images and crops last. Cropping first
is faster, but leaves black corners in rotated images. The augmentation is that of the config, with
the elastic deformation of configs/isbi2012.yaml for both data sets.

All candidates run in turn in one process, so that a noisy machine slows all of them down equally.
Compare the columns of one row, not rows of two runs.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from unet.build import build_reader, list_pairs
from unet.config.data_schema import AugmentConfig
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.data.cache import DecodedCache
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization, normalization_from_sums
from unet.data.pairing import Pair
from unet.data.sampler import SeededBatchSampler
from unet.data.transforms import Augmentation
from unet.inspection.statistics import collect_statistics

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("isbi2012", "camvid")
IMAGES = 32
CROPS = 8  # per image in a round of ours, which is too short to measure otherwise
ELASTIC_STD = 4.0  # pixels, as in configs/isbi2012.yaml


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image and mask through torchvision's transforms, one by one."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: Config,
        augment: AugmentConfig,
        norm: Normalization,
        crop_first: bool,
    ) -> None:
        assert augment.crop is not None
        self.pairs = pairs
        self.mode = "L" if config.model.in_channels == 1 else "RGB"
        # Class ids of the mask's values; both sets have one 8-bit value for each class.
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
            # Torchvision's own smoothness of 5 pixels, bent as far as ours. One as smooth as
            # ours would take a multiple of the time.
            alpha = 2 * augment.elastic_std * (12 * np.pi) ** 0.5 * 5
            steps.append(v2.ElasticTransform(alpha, 5.0))
        self.transforms = v2.Compose(
            [
                *steps,
                *([] if crop_first else [crop]),
                v2.ColorJitter(augment.brightness, augment.contrast),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(norm.mean.tolist(), norm.std.tolist()),
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


@dataclass
class Candidate:
    """A loader of samples."""

    loader: DataLoader
    seconds: list[float] = field(default_factory=list)

    def time(self) -> None:
        """Load one round and note the seconds of a sample in a worker."""
        start = time.perf_counter()
        count = sum(len(images) for images, _ in self.loader)
        workers = max(1, self.loader.num_workers)
        self.seconds.append((time.perf_counter() - start) * workers / count)

    @property
    def median(self) -> float:
        """Median samples per second."""
        return 1 / statistics.median(self.seconds)

    @property
    def shown(self) -> str:
        """Lowest and median samples per second."""
        return f"{1 / max(self.seconds):8.1f} {self.median:8.1f}"


def candidates(config: Config, images: int, crops: int) -> dict[str, Candidate]:
    """Ours from memory, from files and with two workers; the plain loop in two orders."""
    pairs, faults = list_pairs(config)
    assert not faults, faults
    pairs = pairs[:: max(1, len(pairs) // images)][:images]
    reader = build_reader(config)
    _, found, *faults = collect_statistics(pairs, reader)
    assert not any(faults), faults
    norm = normalization_from_sums(
        int(found.sizes.prod(1).sum()), found.sums.sum(0), found.squares.sum(0)
    )
    augment = replace(config.augment, elastic_std=ELASTIC_STD)

    def ours(limit: float, num_workers: int = 0) -> Candidate:
        cache = DecodedCache(pairs, reader, found.sizes, found.num_bytes, limit)
        dataset = SegmentationDataset(
            pairs,
            reader,
            norm,
            Augmentation(**vars(augment)),
            crops_per_image=crops,
            cache=cache,
        )
        return Candidate(
            DataLoader(
                dataset,
                batch_sampler=SeededBatchSampler(
                    len(dataset),
                    config.train.batch_size,
                    seed=0,
                    start=0,
                    stop=len(dataset) // config.train.batch_size,
                ),
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
            )
        )

    def plain(crop_first: bool) -> Candidate:
        dataset = PlainDataset(pairs, config, augment, norm, crop_first)
        return Candidate(DataLoader(dataset, config.train.batch_size, shuffle=True))

    result = {
        "memory": ours(2**30),
        "files": ours(0),
        "workers": ours(2**30, num_workers=2),
        "plain": plain(crop_first=False),
        "crop first": plain(crop_first=True),
    }
    for one in result.values():
        batch = next(iter(one.loader))
        assert [part.shape[-2:] for part in batch] == [augment.crop] * 2
        assert [part.dtype for part in batch] == [torch.float32, torch.int64]
    return result


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="holds isbi2012/ and camvid/ (default: data)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="counted rounds (default: 10)")
    parser.add_argument("--quick", action="store_true", help="only test that the script runs")
    arguments = parser.parse_args()
    images, crops, repeats = (4, 1, 1) if arguments.quick else (IMAGES, CROPS, arguments.repeats)
    names = [name for name in NAMES if (arguments.data / name).is_dir()]
    for name in NAMES:
        if name not in names:
            print(f"{name}: skipped, as there is no folder {arguments.data / name}")
    if not names:
        print(
            f"error: {arguments.data}: holds neither {' nor '.join(NAMES)}; get one as "
            "data/README.md says, or pass --data FOLDER",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; samples per second of one worker: minimum, median")
    print(
        f"{'':8} {'ours, in memory':>17} {'from files':>17} {'memory, 2 workers':>17} "
        f"{'plain loop':>17} {'cropped first':>17}"
    )
    for name in names:
        config = load_config(
            ROOT / "configs" / f"{name}.yaml", [f"data.root={arguments.data / name}"]
        )
        row = candidates(config, images, crops)
        for one in row.values():
            one.time()
            one.seconds.clear()  # the first round includes the start of the workers
        for _ in range(repeats):
            # In random order: the previous run affects the CPU cache and the heap.
            for one in random.sample(list(row.values()), len(row)):
                one.time()
        print(f"{name:8} {' '.join(one.shown for one in row.values())}", flush=True)
        for ours, what in (("memory", "in memory"), ("files", "from files")):
            ratios = [row[ours].median / row[theirs].median for theirs in ("plain", "crop first")]
            print(
                f"{'':8} {what}: {ratios[0]:.1f} times as fast as the plain loop, "
                f"{ratios[1]:.1f} times as fast as it cropping first"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
