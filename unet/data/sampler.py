"""Random batches, the same for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler

from unet.runtime.seeds import Stream


@dataclass(eq=False)
class SeededBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (pass, index), each a function of (seed, number of the batch) alone.

    Every pass over the samples has its own random order. All batches are full: the last one of a
    pass is filled up with the first samples of the next.
    """

    size: int  # samples per pass
    batch_size: int  # over all shards
    seed: int
    start: int  # the first batch
    stop: int  # the batch to stop before
    shard: tuple[int, int] = (0, 1)  # (i, n): the i-th of n equal slices of every batch
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        i, num_shards = self.shard
        length = self.batch_size // num_shards
        for number in range(self.start, self.stop):
            yield self.batch(number)[i * length : (i + 1) * length]

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Return a whole batch."""
        first = number * self.batch_size
        return [self._sample(i) for i in range(first, first + self.batch_size)]

    def _sample(self, number: int) -> tuple[int, int]:
        pass_number, i = divmod(number, self.size)
        if pass_number not in self._orders:
            rng = np.random.default_rng([Stream.ORDER, self.seed, pass_number])
            self._orders = {pass_number: rng.permutation(self.size)}
        return pass_number, int(self._orders[pass_number][i])
