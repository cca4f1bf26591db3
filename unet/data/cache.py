"""Docstring to be written."""

import mmap
from collections.abc import Sequence

import numpy as np
import torch

from unet.data.pairing import PackedPairs, Pair
from unet.data.reader import PairReader


class DecodedCache:
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
