"""The order of training images: a function of seed and epoch, the same for any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np


class EpochSampler:
    """A permutation of ``range(size)`` drawn from (seed, epoch), of which process ``rank`` takes every ``processes``-th.

    In each step P processes with a batch of 1 get the images of one process with a batch of P. The permutation is continued
    from its start until it divides evenly. Assign ``epoch`` before iterating.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.size, self.seed, self.rank, self.processes = size, seed, rank, processes
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.size // self.processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch))

    def order(self, epoch: int) -> list[int]:
        """The indices of ``epoch``."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return np.resize(order, len(self) * self.processes)[self.rank :: self.processes].tolist()

    def batches(self, size: int) -> Iterator[list[tuple[int, int]]]:
        """Batches of (epoch, index) from this epoch on: an epoch's end, where the last may be smaller, stops no loader."""
        for epoch in itertools.count(self.epoch):
            order = self.order(epoch)
            for first in range(0, len(order), size):
                yield [(epoch, index) for index in order[first : first + size]]
