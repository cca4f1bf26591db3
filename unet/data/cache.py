"""Decoded images and masks in memory that worker processes share."""

import mmap
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from unet.data.pairing import PackedPairs, Pair
from unet.data.reader import PairReader

_IMAGE_DTYPES = {1: np.uint8, 2: np.uint16, 4: np.float32}  # by the bytes of a value


class DecodedCache:
    """Pairs by index, the first of them decoded once for all processes.

    The process that first asks for a pair stores it, so that no epoch waits for the others. `sizes`
    (N, 2) are height and width, `num_bytes` (N,) the bytes of all arrays of a pair, `limit` those
    of the cache: pairs beyond it are decoded every time.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: PairReader,
        sizes: np.ndarray,
        num_bytes: np.ndarray,
        limit: float,
    ) -> None:
        self._pairs = PackedPairs.of(pairs)
        self._reader = reader
        # 12 bytes more for the checksum and for the image's alignment.
        self.num_cached = int(np.searchsorted(np.cumsum(num_bytes + 12), limit, side="right"))
        self._sizes, num_bytes = sizes[: self.num_cached], num_bytes[: self.num_cached]
        pixels = self._sizes.prod(1)
        image_bytes = num_bytes - pixels * (1 if reader.border is None else 3)
        self._value_bytes = image_bytes // (pixels * reader.in_channels)
        self._images = _SharedArrays(-(-image_bytes // 4) * 4, torch.uint8)
        self._ids = _SharedArrays(pixels, torch.uint8)
        self._weights = _SharedArrays(pixels * (reader.border is not None), torch.float16)
        # A pair is complete when its bytes have the checksum that was stored with it. A flag that
        # is set last is not enough: where memory is weakly ordered (ARM), another process may see
        # it before the pixels. A lock would have to be passed to every worker, and one that is
        # killed would never release it. Each process compares the checksum of a pair once.
        self._checksums = _SharedArrays(np.ones(self.num_cached, np.int64), torch.int64)
        self._compared = np.zeros(self.num_cached, bool)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """Return what the reader returns for a pair."""
        if index >= self.num_cached:
            return self._reader(self._pairs[index])
        stored, checksum = self._stored(index), self._checksums[index]
        if self._compared[index] or (checksum[0] and checksum[0] == _checksum(stored)):
            self._compared[index] = True
            return stored
        arrays = self._reader(self._pairs[index])
        same = [one.shape == place.shape for one, place in zip(arrays, stored, strict=True)]
        if all(same) and arrays[0].dtype == stored[0].dtype:  # else the file has changed
            for place, one in zip(stored, arrays, strict=True):
                place[...] = one
            checksum[0] = _checksum(arrays)
        return arrays

    def _stored(self, index: int) -> tuple[np.ndarray, ...]:
        """Views of image (C, H, W), class ids and, if any, weights (H, W) in the cache."""
        height, width = self._sizes[index].tolist()
        channels, value_bytes = self._reader.in_channels, int(self._value_bytes[index])
        image = self._images[index][: channels * height * width * value_bytes]
        image = image.view(_IMAGE_DTYPES[value_bytes]).reshape(channels, height, width)
        ids = self._ids[index].reshape(height, width)
        if self._reader.border is None:
            return image, ids
        return image, ids, self._weights[index].reshape(height, width)


class _SharedArrays:
    """Flat arrays of zeros, of given lengths, in memory that processes share."""

    def __init__(self, lengths: np.ndarray, dtype: torch.dtype) -> None:
        self._bounds = np.concatenate([[0], np.cumsum(lengths)])
        # Forked workers share an anonymous map. A tensor, because torch moves it to shared memory
        # when it passes it to a spawned worker.
        num_bytes = max(1, int(self._bounds[-1])) * dtype.itemsize
        self._block = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype)

    def __getitem__(self, index: int) -> np.ndarray:
        array: np.ndarray = self._block.numpy()[self._bounds[index] : self._bounds[index + 1]]
        return array


def _checksum(arrays: Sequence[np.ndarray]) -> int:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum
