"""Pairs of files -> samples for training and scoring."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from unet.augment import Augment
from unet.border_weights import Border, border_weights, part_cells
from unet.cleanup import number_objects
from unet.images import read_image, to_float
from unet.masks import ClassMap, read_instances, read_parts
from unet.pairs import PackedPairs, Pair

# First words of the seeds, so that no two uses draw the same numbers; 1 is the split's.
_ORDER_STREAM, _AUGMENT_STREAM = 2, 3


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Reads pairs of one data set.

    Args:
        classes: of the masks.
        in_channels: C of the images.
        in_parts: whether a mask lies in several files, one for each class but the first.
        border: how the background between cells weighs more; None for not.
    """

    classes: ClassMap
    in_channels: int
    in_parts: bool = False
    border: Border | None = None

    def __call__(self, pair: Pair) -> tuple[np.ndarray, ...]:
        """Read what there is to learn.

        Returns:
            Image and class ids as `read` gives them; with a border, touching cells are parted, and
            the extra weights (H, W) come third: float16, as three digits are enough.

        Raises:
            FileNotFoundError, ValueError: as `read` and `cells`.
        """
        image, ids = self.read(pair)
        if self.border is None:
            return image, ids
        ids, cells = part_cells(ids, self.cells(pair, ids))
        weights = border_weights(cells, self.border.weight, self.border.sigma)
        return image, ids, weights.astype(np.float16)

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
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

    def cells(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Number the cells (H, W), 0 between them, by the border's classes or the label image.

        Raises:
            FileNotFoundError: if the label image is missing.
            ValueError: if it cannot be read or is not that of the mask; if scipy is not installed.
        """
        classes = self.border.classes if self.border else ()
        if classes or pair.instances is None:
            return number_objects(ids, classes)
        return self.label_image(pair, ids)

    def label_image(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Read the label image (H, W) of a pair that has one: as `cells`, whatever the border."""
        assert pair.instances is not None
        cells = read_instances(pair.instances, (ids.shape[0], ids.shape[1]), pair.page)
        numbered = ids[cells > 0]
        if 2 * np.count_nonzero(numbered == 0) > numbered.size:
            raise ValueError(
                f"{pair.instances}: got cells that are {(numbered == 0).mean():.0%} "
                f"{self.classes.names[0]} in {pair.masks[0]}, expected other classes; pair them "
                "right, or let data.classes begin with the class that lies between cells"
            )
        inside = cells[ids == 1] > 0
        if len(self.classes.names) == 2 and 2 * np.count_nonzero(inside) < inside.size:
            raise ValueError(
                f"{pair.instances}: numbers {inside.mean():.0%} of the pixels of "
                f"{self.classes.names[1]} in {pair.masks[0]}, expected most; pair them right, or "
                "complete the label image"
            )
        return cells


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

    def __str__(self) -> str:
        """Say how, in words."""
        if self.method != "given":
            return self.method
        mean, std = ([round(number, 3) for number in part] for part in (self.mean, self.std))
        return f"mean {mean} and std {std}"

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W), integers scaled from 0 to 1 -> normalised."""
        if self.method == "given":
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            return (image - mean[:, None, None]) / std[:, None, None]
        # NumPy's sums are the same with any number of threads, in the main process and in workers.
        pixels = image.flatten(1).numpy().astype(np.float64)
        if self.method == "percentiles":
            low, high = np.percentile(pixels, (0.5, 99.5), axis=1, keepdims=True)
            pixels = pixels.clip(low, high)
        mean = pixels.mean(1, keepdims=True)
        normalised = (pixels - mean) / _contrast(mean, pixels.std(1, keepdims=True))
        return torch.from_numpy(normalised.astype(np.float32)).reshape(image.shape)


def normalization_of(
    pixels: int | np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> Normalization:
    """Mean and standard deviation from the number, sums (C,) and squares (C,) of the pixels."""
    mean = sums / pixels
    std = _contrast(mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0)))
    return Normalization(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _contrast(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The standard deviation to divide by: 1 where all is the same but for rounding."""
    return np.where(std > 1e-6 * np.abs(mean), std, 1.0)


class DecodedImages:
    """The first pairs of a data set, decoded once, in one block of memory that processes share.

    A pair is read when it is first asked for, by whichever process asks: nothing waits for all.

    Args:
        pairs: the files.
        reader: of them.
        num_bytes: (N,) that each pair takes decoded.
        limit: bytes that all may take; those that do not fit are not kept.
    """

    def __init__(
        self, pairs: Sequence[Pair], reader: PairReader, num_bytes: np.ndarray, limit: float
    ) -> None:
        self._pairs = PackedPairs.of(pairs)
        self._reader = reader
        # Starts are multiples of 8 bytes, as numbers of any kind like it.
        ends = np.cumsum(_HEADER_BYTES + -(-num_bytes // 8) * 8)
        self.count = int(np.searchsorted(ends, limit, side="right"))
        self._bounds = np.concatenate([[0], ends[: self.count]])
        # Zeros, in memory that forked workers share. A tensor: where workers are not forked, torch
        # moves it to such memory as it passes it on.
        size = max(1, int(self._bounds[-1]))
        self._block = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """What the reader gives of a pair before `count`."""
        block = self._block.numpy()[self._bounds[index] : self._bounds[index + 1]]
        header, data = block[:_HEADER_BYTES].view(np.int64), block[_HEADER_BYTES:]
        if header[0] == 0:
            arrays = self._reader(self._pairs[index])
            ends = np.cumsum([array.nbytes for array in arrays])
            if ends[-1] <= len(data):  # else it has changed since it was measured
                for array, end in zip(arrays, ends, strict=True):
                    data[end - array.nbytes : end] = array.reshape(-1).view(np.uint8)
                header[1:] = arrays[0].shape
                header[0] = _DTYPES.index(arrays[0].dtype.name)  # last: now all is there
            return arrays
        channels, height, width = header[1:].tolist()
        dtype, size = np.dtype(_DTYPES[header[0]]), height * width
        split = channels * size * dtype.itemsize
        image = data[:split].view(dtype).reshape(channels, height, width)
        ids = data[split : split + size].reshape(height, width)
        if self._reader.border is None:
            return image, ids
        # A copy: they may begin at an odd byte.
        weights = data[split + size : split + 3 * size].copy().view(np.float16)
        return image, ids, weights.reshape(height, width)


_HEADER_BYTES = 32
"""Before each pair, four int64: the place of the image's dtype in `_DTYPES`, C, H, W."""

_DTYPES = ("", "uint8", "uint16", "float32")
"""The first stands for what has not been read yet."""


class SegmentationDataset(Dataset[tuple[Tensor, ...]]):
    """Samples, each a function of (seed, pass, index) whoever loads it.

    Args:
        pairs: the files.
        reader: of them.
        normalization: of the images; None for none.
        augment: drawn anew for every pass and index; None for whole images as they are.
        seed: of all augmentations.
        crops_per_image: samples of each pair in a pass.
        rare: ids of classes that a share of the crops is drawn around.
        rare_share: that share.
        decoded: what is kept in memory of these pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: PairReader,
        normalization: Normalization | None,
        augment: Augment | None = None,
        seed: int = 0,
        crops_per_image: int = 1,
        rare: Sequence[int] = (),
        rare_share: float = 0.0,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.pairs = PackedPairs.of(pairs)
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

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, ...]:
        """(pass, index) -> image (C, h, w) float32 and target (h, w) int64.

        Of a reader with a border, the extra weights (h, w) float32 come third.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if one cannot be read.
            RuntimeError: with the file, if anything else goes wrong.
        """
        try:
            return self._sample(*place)
        except (ValueError, OSError):
            raise  # the reader's, which name the file
        except Exception as error:
            raise RuntimeError(
                f"{self.pair(place).images[0]}: no sample could be made of it "
                f"({type(error).__name__}: {error})"
            ) from error

    def pair(self, place: tuple[int, int]) -> Pair:
        """Return the pair of files that a place stands for."""
        return self.pairs[place[1] % len(self.pairs)]

    def _sample(self, number: int, index: int) -> tuple[Tensor, ...]:
        which = index % len(self.pairs)
        if self.decoded is not None and which < self.decoded.count:
            pixels, ids, *extra = self.decoded[which]
        else:
            pixels, ids, *extra = self.reader(self.pairs[which])
        image = torch.from_numpy(to_float(pixels))
        if self.normalization is not None:
            image = self.normalization(image)
        weights = [torch.from_numpy(one).float() for one in extra]
        if self.augment is None:
            return image, torch.from_numpy(ids).long(), *weights
        rng = np.random.default_rng([_AUGMENT_STREAM, self.seed, number, index])
        is_rare = self.rare_share > 0 and rng.random() < self.rare_share
        around = self._rare_pixel(ids, rng) if is_rare else None
        return self.augment(image, torch.from_numpy(ids), rng, around, *weights)

    def _rare_pixel(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """(y, x) of a pixel of a rare class, each class of the image as likely as another."""
        for i in rng.permutation(self.rare).tolist():
            if len(places := np.flatnonzero(ids == i)):
                y, x = divmod(int(rng.choice(places)), ids.shape[1])
                return y, x
        return None


class BatchStream(Sampler[list[tuple[int, int]]]):
    """Batches of places (pass, index), a function of (seed, number of the batch).

    One pass over all samples follows the other, each in an order of its own. Every batch is full:
    one that a pass does not fill goes on with the next.

    Args:
        size: samples in a pass.
        batch_size: places in a batch.
        seed: of the orders.
        start: the first batch.
        stop: the one after the last.
        share: which of so many equal parts of every batch; (0, 1) for whole batches.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.share = share
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part, parts = self.share
        length = self.batch_size // parts
        for batch in range(self.start, self.stop):
            yield self.places(batch)[part * length : (part + 1) * length]

    def places(self, batch: int) -> list[tuple[int, int]]:
        """Return the places of a whole batch."""
        first = batch * self.batch_size
        return [self._place(number) for number in range(first, first + self.batch_size)]

    def _place(self, number: int) -> tuple[int, int]:
        which, i = divmod(number, self.size)
        if which not in self._orders:
            rng = np.random.default_rng([_ORDER_STREAM, self.seed, which])
            self._orders = {which: rng.permutation(self.size)}
        return which, int(self._orders[which][i])
