"""Pairs of files -> samples for training and scoring."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.augmentation import Augmentation
from unet.data.cache import DecodedCache
from unet.data.custom_transform import Transform, apply_transform
from unet.data.image_io import to_float
from unet.data.image_types import Window, cut
from unet.data.normalization import Normalization, image_statistics, normalize
from unet.data.pairing import PackedPairs, Pair
from unet.data.reader import PairReader
from unet.runtime.errors import SampleError, is_out_of_memory
from unet.runtime.seeds import Stream


class _Source(NamedTuple):
    """The arrays of a pair as `PairReader` returns them; None if they are read in windows."""

    pair: Pair
    size: tuple[int, int]
    arrays: tuple[np.ndarray, ...] | None


class _Whole(NamedTuple):
    """What samples need to know of a whole image."""

    statistics: tuple[Tensor, ...]  # of `image_statistics`
    rare_counts: dict[int, np.ndarray]  # pixels of each rare class in each row, (H,) by class id


@dataclass(eq=False)
class SegmentationDataset(Dataset[tuple[Tensor, ...]]):
    """Samples, each a function of (seed, pass, index) alone, whichever process loads it."""

    pairs: Sequence[Pair]
    reader: PairReader
    normalization: Normalization | None
    augment: Augmentation | None = None  # None for whole images
    seed: int = 0  # of the augmentation
    crops_per_image: int = 1  # samples per pair and pass over the data
    rare_classes: Sequence[int] = ()  # class ids that a fraction of the crops is drawn around
    rare_fraction: float = 0.0
    cache: DecodedCache | None = None  # of the same pairs
    transform: Transform | None = None  # of the user, before the augmentation
    # By index of the pair. Each process computes them once.
    _window_sizes: dict[int, tuple[int, int] | None] = field(default_factory=dict, init=False)
    _known: dict[int, _Whole] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.pairs = PackedPairs.of(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs) * self.crops_per_image

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, ...]:
        """(pass, index) -> image (C, h, w) float32 and target (h, w) int64.

        If the reader has a border, pixel weights (h, w) float32 come third.

        Raises:
            FileNotFoundError, ValueError: if a file is missing or cannot be read.
            SampleError: for any other error, with the file's name.
        """
        try:
            return self._sample(*place)
        except (ValueError, OSError):
            raise  # they name the file
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise SampleError(
                f"{self.pair(place).images[0]}: cannot make a sample from it "
                f"({type(error).__name__}: {error})"
            ) from error

    def pair(self, place: tuple[int, int]) -> Pair:
        """Return the pair of files of (pass, index)."""
        return self.pairs[place[1] % len(self.pairs)]

    def _sample(self, pass_number: int, index: int) -> tuple[Tensor, ...]:
        i = index % len(self.pairs)
        source = self._open(i)
        if self.transform is not None:
            source = self._transform(source, pass_number, index)
            self._known.pop(i, None)  # of the image after an earlier transform
        if self.augment is None:
            assert source.arrays is not None
            image, ids, *weights = self._to_tensors(source.arrays)
            return image, ids.long(), *weights
        rng = np.random.default_rng([Stream.AUGMENTATION, self.seed, pass_number, index])
        is_rare = self.rare_fraction > 0 and rng.random() < self.rare_fraction
        around = self._rare_pixel(i, source, rng) if is_rare else None
        place = self.augment.place(source.size, rng, around)
        statistics = self._whole(i, source).statistics
        window = self._to_tensors(self._cut(source, place.window), statistics)
        return self.augment.apply(place, rng, *window)

    def _open(self, i: int) -> _Source:
        """Decode a pair, unless samples of it are read in windows."""
        pair = self.pairs[i]
        is_cached = self.cache is not None and i < self.cache.num_cached
        if self.augment is not None and self.transform is None and not is_cached:
            if i not in self._window_sizes:
                self._window_sizes[i] = self.reader.window_size(pair)
            if (size := self._window_sizes[i]) is not None:
                return _Source(pair, size, None)
        arrays = self.reader(pair) if self.cache is None else self.cache[i]
        return _Source(pair, (arrays[1].shape[0], arrays[1].shape[1]), arrays)

    def _transform(self, source: _Source, pass_number: int, index: int) -> _Source:
        assert self.transform is not None
        assert source.arrays is not None
        seed = np.random.SeedSequence([Stream.TRANSFORM, self.seed, pass_number, index])
        number, num_classes = int(seed.generate_state(1)[0]), len(self.reader.classes.names)
        pixels, ids = source.arrays
        pixels, ids = apply_transform(self.transform, pixels, ids, number, num_classes)
        return _Source(source.pair, (ids.shape[0], ids.shape[1]), (pixels, ids))

    def _cut(self, source: _Source, window: Window) -> tuple[np.ndarray, ...]:
        if source.arrays is None:
            return self.reader.read(source.pair, window)
        return tuple(cut(array, window) for array in source.arrays)

    def _to_tensors(
        self, arrays: tuple[np.ndarray, ...], statistics: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Return a normalised image, class ids and, if any, pixel weights."""
        pixels, ids, *weights = arrays
        image = torch.from_numpy(to_float(pixels))
        if self.normalization is not None:
            image = normalize(self.normalization, image, statistics)
        return image, torch.from_numpy(ids), *(torch.from_numpy(one).float() for one in weights)

    def _whole(self, i: int, source: _Source) -> _Whole:
        normalization = self.normalization
        needs_image = normalization is not None and normalization.method != "given"
        if i not in self._known:
            statistics: tuple[Tensor, ...] = ()
            counts = {}
            if needs_image or self.rare_fraction:
                pixels, ids, *_ = source.arrays or self.reader(source.pair)
                counts = {one: np.count_nonzero(ids == one, axis=1) for one in self.rare_classes}
                if normalization is not None:
                    image = torch.from_numpy(to_float(pixels))
                    statistics = image_statistics(normalization, image)
            self._known[i] = _Whole(statistics, counts)
        return self._known[i]

    def _rare_pixel(
        self, i: int, source: _Source, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """(y, x) of a random pixel of a rare class, each class in the image equally likely."""
        counts = self._whole(i, source).rare_counts
        for one in rng.permutation(self.rare_classes).tolist():
            ends = counts[one].cumsum().tolist()  # numbers of the pixels up to the end of each row
            if ends[-1]:
                number = int(rng.choice(ends[-1]))
                y = bisect_right(ends, number)
                row = self._cut(source, Window(y, y + 1, 0, source.size[1]))[1][0]
                x = np.flatnonzero(row == one)[number - ends[y]]
                return y, int(x)
        return None
