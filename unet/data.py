"""Image and mask files: find, pair, split, check, and load them."""

import difflib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from unet.augment import Augment
from unet.images import SUFFIXES, read_image
from unet.masks import ClassMap

# First words of the seeds, so that no two uses draw the same numbers.
_SPLIT_STREAM, _ORDER_STREAM, _AUGMENT_STREAM = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and its mask file."""

    image: Path
    mask: Path

    @property
    def stem(self) -> str:
        """The name that both share."""
        return self.image.stem


def natural_key(text: str) -> list[str | int]:
    """Sort key by which `2.tif` comes before `10.tif`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def list_images(folder: Path) -> list[Path]:
    """All image files of a folder in natural order; hidden files and other endings are not.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; check the path")
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise ValueError(
            f"{folder}: got no image, expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(files, key=lambda path: (natural_key(path.name), path.name))


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Pair the files of two folders by their stem, in natural order.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a stem is there twice, or without its other half.
    """
    image_files, mask_files = _by_stem(images), _by_stem(masks)
    without_mask = [path for stem, path in image_files.items() if stem not in mask_files]
    without_image = [path for stem, path in mask_files.items() if stem not in image_files]
    faults = []
    if without_mask:
        faults.append(f"{images}: {_some(without_mask)} without a mask in {masks}")
    if without_image:
        faults.append(f"{masks}: {_some(without_image)} without an image in {images}")
    if faults:
        raise ValueError(
            "; ".join(faults) + "; expected a mask of the same stem for every image and none "
            "besides: add or move the files"
        )
    return [Pair(image=path, mask=mask_files[stem]) for stem, path in image_files.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in files:
            raise ValueError(
                f"{folder}: got both {files[path.stem].name} and {path.name}, expected one file "
                "of each stem; remove one"
            )
        files[path.stem] = path
    return files


def _some(paths: Sequence[Path]) -> str:
    """Name the first few of many files."""
    names = ", ".join(path.name for path in paths[:5])
    return names + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def split_by_fraction(
    pairs: Sequence[Pair], fraction: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Choose a share of the pairs by lot for validation, at least one and not all.

    Returns:
        Training and validation pairs, each in the order given.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"data.validation.fraction: got {len(pairs)} pair to split, expected at least 2; add "
            "images or give data.validation.images and data.validation.masks"
        )
    count = min(max(1, round(fraction * len(pairs))), len(pairs) - 1)
    chosen = set(
        np.random.default_rng([_SPLIT_STREAM, seed]).permutation(len(pairs))[:count].tolist()
    )
    return (
        [pair for i, pair in enumerate(pairs) if i not in chosen],
        [pair for i, pair in enumerate(pairs) if i in chosen],
    )


def split_by_stems(pairs: Sequence[Pair], stems: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
    """Take the pairs of the given stems for validation.

    Returns:
        Training and validation pairs, each in the order given.

    Raises:
        ValueError: if a stem is not among the pairs, or none is left to train on.
    """
    known = [pair.stem for pair in pairs]
    for stem in stems:
        if stem not in known:
            near = difflib.get_close_matches(stem, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"data.validation.stems: got {stem!r}, expected the stem of an image in "
                f"{pairs[0].image.parent}{hint}"
            )
    train = [pair for pair in pairs if pair.stem not in set(stems)]
    if not train:
        raise ValueError("data.validation.stems: got every image, expected some left to train on")
    return train, [pair for pair in pairs if pair.stem in set(stems)]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Mean and standard deviation of each channel, of images scaled from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) from 0 to 1 -> mean 0 and standard deviation 1 over the training images."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (image - mean[:, None, None]) / std[:, None, None]


def read_pair(pair: Pair, classes: ClassMap, in_channels: int) -> tuple[Tensor, Tensor]:
    """Read image (C, H, W) float32 from 0 to 1 and target (H, W) int64 of class ids.

    Raises:
        ValueError: if one cannot be read, or their sizes differ.
    """
    image = torch.from_numpy(read_image(pair.image, in_channels))
    height, width = image.shape[1:]
    target = torch.from_numpy(classes.read(pair.mask, (height, width))).long()
    return image, target


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """What is kept of a pair that was read once."""

    size: tuple[int, int]
    """(height, width)."""
    class_pixels: np.ndarray
    """Pixels of each class, (K,)."""
    sums: np.ndarray
    """Of the values of each channel, (C,)."""
    squares: np.ndarray
    """Of the squared values of each channel, (C,)."""


def check_pairs(
    pairs: Sequence[Pair], classes: ClassMap, in_channels: int, what: str
) -> list[PairSummary]:
    """Read every pair once, so that whatever is wrong with the files is known before work starts.

    Args:
        pairs: image and mask files.
        classes: of the masks.
        in_channels: channels that the images must have.
        what: the pairs' name on the progress bar.

    Raises:
        ValueError: with every fault found, a line each (the first ten).
    """

    def read(pair: Pair) -> PairSummary | str:
        try:
            image, target = read_pair(pair, classes, in_channels)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        counts = torch.bincount(target.flatten(), minlength=256)[: len(classes.names)]
        return PairSummary(
            size=(target.shape[0], target.shape[1]),
            class_pixels=counts.numpy(),
            sums=image.sum((1, 2), dtype=torch.float64).numpy(),
            squares=image.square().sum((1, 2), dtype=torch.float64).numpy(),
        )

    with ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(read, pairs), what, len(pairs), unit="image", leave=False, disable=None)
        found = list(bar)
    faults = [result for result in found if isinstance(result, str)]
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("\n".join(faults[:10]) + more)
    return [result for result in found if not isinstance(result, str)]


def normalization_of(summaries: Sequence[PairSummary]) -> Normalization:
    """Mean and standard deviation over all pixels of the images."""
    pixels = sum(height * width for height, width in (one.size for one in summaries))
    mean = np.sum([one.sums for one in summaries], axis=0) / pixels
    square = np.sum([one.squares for one in summaries], axis=0) / pixels
    # A channel that is the same everywhere has no contrast to scale: half a step of 8 bits.
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=0.5 / 255)
    return Normalization(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def class_pixels_of(summaries: Sequence[PairSummary], which: str) -> list[int]:
    """Pixels of each class over all masks.

    Raises:
        ValueError: naming `which` images, if every pixel is ignored.
    """
    pixels = np.sum([one.class_pixels for one in summaries], axis=0)
    if not pixels.any():
        raise ValueError(
            f"data.ignore: got {which} masks in which every pixel is ignored, expected some of "
            "data.classes; correct data.ignore or the masks"
        )
    return [int(count) for count in pixels]


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples, each a function of (seed, epoch, index) whoever loads it.

    Args:
        pairs: the files.
        classes: of the masks.
        in_channels: channels of the images.
        normalization: of the images.
        augment: drawn anew for every epoch and index; None for whole images as they are.
        seed: of all augmentations.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassMap,
        in_channels: int,
        normalization: Normalization,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.pairs = pairs
        self.classes = classes
        self.in_channels = in_channels
        self.normalization = normalization
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(epoch, index) -> image (C, h, w) float32 and target (h, w) int64."""
        epoch, index = place
        image, target = read_pair(self.pairs[index], self.classes, self.in_channels)
        image = self.normalization(image)
        if self.augment is None:
            return image, target
        rng = np.random.default_rng([_AUGMENT_STREAM, self.seed, epoch, index])
        return self.augment(image, target, rng)


class EpochSampler(Sampler[tuple[int, int]]):
    """The places (epoch, index) of one epoch, in an order that is a function of (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([_ORDER_STREAM, self.seed, self.epoch]).permutation(self.size)
        return iter([(self.epoch, index) for index in order.tolist()])
