"""Docstring to be written."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# First words of the seeds, so that no two uses draw the same numbers; 1 is the split's.
_ORDER_STREAM = 2


class SeededBatchSampler(Sampler[list[tuple[int, int]]]):
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
