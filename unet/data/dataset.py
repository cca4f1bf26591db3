"""Pairs of files -> samples for training and scoring."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.cache import DecodedCache
from unet.data.image_io import to_float
from unet.data.normalization import Normalization
from unet.data.pairing import PackedPairs, Pair
from unet.data.reader import PairReader
from unet.data.transforms import Augment

# First words of the seeds, so that no two uses draw the same numbers: 1 the split, 2 the order, 3 this.
_AUGMENT_STREAM = 3


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
        rare_fraction: that share.
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
        rare_fraction: float = 0.0,
        decoded: DecodedCache | None = None,
    ) -> None:
        self.pairs = PackedPairs.of(pairs)
        self.reader = reader
        self.normalization = normalization
        self.augment = augment
        self.seed = seed
        self.crops_per_image = crops_per_image
        self.rare = rare
        self.rare_fraction = rare_fraction
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
        is_rare = self.rare_fraction > 0 and rng.random() < self.rare_fraction
        around = self._rare_pixel(ids, rng) if is_rare else None
        return self.augment(image, torch.from_numpy(ids), rng, around, *weights)

    def _rare_pixel(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """(y, x) of a pixel of a rare class, each class of the image as likely as another."""
        for i in rng.permutation(self.rare).tolist():
            if len(places := np.flatnonzero(ids == i)):
                y, x = divmod(int(rng.choice(places)), ids.shape[1])
                return y, x
        return None
