"""The order of training images: a function of seed and epoch, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A permutation of ``range(size)`` drawn from (seed, epoch), of which process ``rank`` takes every ``processes``-th.

    In each step P processes with a batch of 1 get the images of one process with a batch of P. The permutation is continued
    from its start until it divides evenly. Assign ``epoch`` before iterating. (It is no ``set_epoch`` method: Lightning
    Fabric would call one with the number of epochs since the process began, which a resumed run starts from 0.)
    """

    def __init__(self, size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.size, self.seed, self.rank, self.processes = size, seed, rank, processes
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.size // self.processes)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return iter(np.resize(order, len(self) * self.processes)[self.rank :: self.processes].tolist())
