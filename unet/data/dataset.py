"""Pairs of files -> samples for training and scoring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.augmentation import Augmentation
from unet.data.cache import DecodedCache
from unet.data.image_io import to_float
from unet.data.normalization import Normalization, normalize
from unet.data.pairing import PackedPairs, Pair
from unet.data.reader import PairReader
from unet.runtime.errors import SampleError, is_out_of_memory
from unet.runtime.seeds import Stream


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
        pixels, ids, *extra = self.reader(self.pairs[i]) if self.cache is None else self.cache[i]
        image = torch.from_numpy(to_float(pixels))
        if self.normalization is not None:
            has_missing = pixels.dtype == np.float32  # perhaps
            image = (
                normalize(self.normalization, image) if has_missing else self.normalization(image)
            )
        weights = [torch.from_numpy(one).float() for one in extra]
        if self.augment is None:
            return image, torch.from_numpy(ids).long(), *weights
        rng = np.random.default_rng([Stream.AUGMENTATION, self.seed, pass_number, index])
        is_rare = self.rare_fraction > 0 and rng.random() < self.rare_fraction
        around = self._rare_pixel(ids, rng) if is_rare else None
        return self.augment(image, torch.from_numpy(ids), rng, around, *weights)

    def _rare_pixel(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """(y, x) of a random pixel of a rare class, each class in the image equally likely."""
        for i in rng.permutation(self.rare_classes).tolist():
            if len(places := np.flatnonzero(ids == i)):
                y, x = divmod(int(rng.choice(places)), ids.shape[1])
                return y, x
        return None
