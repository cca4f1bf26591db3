"""Pairs of files -> samples for training and scoring."""

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from unet.augment import Augment
from unet.images import read_image, to_float
from unet.masks import ClassMap, read_parts
from unet.pairs import Pair

# First words of the seeds, so that no two uses draw the same numbers; 1 is the split's.
_ORDER_STREAM, _AUGMENT_STREAM = 2, 3


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Reads pairs of one data set.

    Args:
        classes: of the masks.
        in_channels: C of the images.
        in_parts: whether a mask lies in several files, one for each class but the first.
    """

    classes: ClassMap
    in_channels: int
    in_parts: bool = False

    def __call__(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (C, H, W), as `read_image` gives it, and class ids (H, W) uint8.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if one cannot be read, or their sizes differ.
        """
        image = read_image(pair.images, self.in_channels, pair.page)
        size = (image.shape[1], image.shape[2])
        names = self.classes.names
        if self.in_parts:
            return image, read_parts(pair.masks, names[1:], self.classes.tolerance, size, pair.page)
        return image, self.classes.read(pair.masks[0], size, pair.page)


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """To a mean of 0 and a standard deviation of 1.

    Args:
        method: by the numbers given, each image by its own, or that without its darkest and
            brightest 0.5 %, which are cut off.
        mean: of each channel, for given numbers.
        std: likewise.
    """

    method: Literal["given", "image", "percentiles"] = "given"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W), integers scaled from 0 to 1 -> normalised."""
        if self.method == "given":
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            return (image - mean[:, None, None]) / std[:, None, None]
        if self.method == "percentiles":
            # NumPy's, since torch.quantile takes 16 million numbers at most.
            low, high = np.percentile(image.flatten(1).numpy(), (0.5, 99.5), axis=1)
            image = torch.clamp(
                image, *(torch.from_numpy(x).float()[:, None, None] for x in (low, high))
            )
        mean = image.mean((1, 2), dtype=torch.float64, keepdim=True).float()
        std = (image - mean).square().mean((1, 2), keepdim=True).sqrt()
        return (image - mean) / std.clamp(min=_NO_CONTRAST)


# A channel that is the same everywhere has no contrast to scale: half a step of 8 bits.
_NO_CONTRAST = 0.5 / 255


def normalization_of(pixels: int, sums: np.ndarray, squares: np.ndarray) -> Normalization:
    """Mean and standard deviation from the number, sums (C,) and squares (C,) of all pixels."""
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)).clip(min=_NO_CONTRAST)
    return Normalization(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


class DecodedImages:
    """The first pairs of a data set, decoded, in one block of memory that processes share.

    Args:
        pairs: the files.
        reader: of them.
        num_bytes: (N,) that each pair takes decoded.
        limit: bytes that all may take; those that do not fit are read anew each time.
    """

    def __init__(
        self, pairs: Sequence[Pair], reader: PairReader, num_bytes: np.ndarray, limit: float
    ) -> None:
        # Starts are multiples of 8 bytes, as numbers of any kind like it.
        ends = np.cumsum(-(-num_bytes // 8) * 8)
        self.count = int(np.searchsorted(ends, limit, side="right"))
        self._starts = np.concatenate([[0], ends])[: self.count]
        # A tensor: where workers are not forked, torch passes it on without copying it.
        size = int(ends[self.count - 1]) if self.count else 0
        self._block = torch.empty(size, dtype=torch.uint8)
        self._shapes = np.zeros((self.count, 3), np.int64)
        self._dtypes = np.zeros(self.count, "U8")
        bar = tqdm(total=self.count, desc="load", unit="image", leave=False, disable=None)
        with ThreadPoolExecutor() as pool:
            for first in range(0, self.count, _AT_ONCE):
                block = range(first, min(first + _AT_ONCE, self.count))
                for _ in pool.map(
                    self._store, block, map(pairs.__getitem__, block), repeat(reader)
                ):
                    bar.update()
        bar.close()

    def _store(self, index: int, pair: Pair, reader: PairReader) -> None:
        image, ids = reader(pair)
        self._shapes[index], self._dtypes[index] = image.shape, image.dtype.name
        here, target = self[index]
        here[:] = image
        target[:] = ids

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and class ids of a pair before `count`, as the reader gave them."""
        channels, height, width = self._shapes[index]
        dtype, start = np.dtype(str(self._dtypes[index])), self._starts[index]
        end = start + channels * height * width * dtype.itemsize
        block = self._block.numpy()
        image = block[start:end].view(dtype).reshape(channels, height, width)
        return image, block[end : end + height * width].reshape(height, width)


_AT_ONCE = 1024
"""Files that wait for a thread: a list of all would be large."""


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples, each a function of (seed, epoch, index) whoever loads it.

    Args:
        pairs: the files.
        reader: of them.
        normalization: of the images.
        augment: drawn anew for every epoch and index; None for whole images as they are.
        seed: of all augmentations.
        crops_per_image: samples of each pair in an epoch.
        rare: ids of classes that a share of the crops is drawn around.
        rare_share: that share.
        decoded: what is in memory of these pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: PairReader,
        normalization: Normalization,
        augment: Augment | None = None,
        seed: int = 0,
        crops_per_image: int = 1,
        rare: Sequence[int] = (),
        rare_share: float = 0.0,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.pairs = _Packed(pairs)
        self.reader = reader
        self.normalization = normalization
        self.augment = augment
        self.seed = seed
        self.crops_per_image = crops_per_image
        self.rare = rare
        self.rare_share = rare_share
        self.decoded = decoded

    def __len__(self) -> int:
        return len(self.pairs) * self.crops_per_image

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(epoch, index) -> image (C, h, w) float32 and target (h, w) int64."""
        epoch, index = place
        which = index % len(self.pairs)
        if self.decoded is not None and which < self.decoded.count:
            pixels, ids = self.decoded[which]
        else:
            pixels, ids = self.reader(self.pairs[which])
        image = self.normalization(torch.from_numpy(to_float(pixels)))
        if self.augment is None:
            return image, torch.from_numpy(ids).long()
        rng = np.random.default_rng([_AUGMENT_STREAM, self.seed, epoch, index])
        around = self._rare_pixel(ids, rng) if rng.random() < self.rare_share else None
        return self.augment(image, torch.from_numpy(ids), rng, around)

    def _rare_pixel(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """(y, x) of a pixel of a rare class, each class of the image as likely as another."""
        for i in rng.permutation(self.rare).tolist():
            if len(places := np.flatnonzero(ids == i)):
                y, x = divmod(int(rng.choice(places)), ids.shape[1])
                return y, x
        return None


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
        return ((self.epoch, int(index)) for index in order)


class _Packed(Sequence[Pair]):
    """Pairs in one array of bytes.

    A list's items count who refers to them, and that writes to the memory that a forked worker
    shares with its parent, page by page, until it has a copy of all.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        packed = [pickle.dumps(pair) for pair in pairs]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        start, end = self._ends[index], self._ends[index + 1]
        pair = pickle.loads(self._bytes[start:end].data)  # noqa: S301 (packed above)
        assert isinstance(pair, Pair)
        return pair
