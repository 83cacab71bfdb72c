"""The order of training images, the processes that load them, and the way of a batch from these to the device."""

from __future__ import annotations

import gc
import itertools
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.crowd import Batch, Crowd, TrainSample, collate
from GS2D.kernel import BlockKernel

_ALIGNED = 16  # bytes, at least any element's


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


@dataclass
class PackedBatch:
    """A ``Batch`` whose tensors lie in one, since to hand over, pin or copy a tensor takes as long whatever its size."""

    packed: Tensor  # uint8 [bytes]
    layout: list[tuple[torch.dtype, tuple[int, ...]]]  # of the tensors in it
    others: tuple

    @classmethod
    def collate(cls, samples: Sequence[TrainSample]) -> PackedBatch:
        """For ``DataLoader(collate_fn=...)``."""
        batch = collate(samples)
        tensors = [*batch[:4], batch.received, *batch.kernel] if batch.kernel else batch[:4]
        pieces = [F.pad(tensor.reshape(-1).view(torch.uint8), (0, -tensor.nbytes % _ALIGNED)) for tensor in tensors]
        return cls(torch.cat(pieces), [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors], batch[6:])

    def pin_memory(self) -> PackedBatch:
        """For ``DataLoader(pin_memory=True)``."""
        return PackedBatch(self.packed.pin_memory(), self.layout, self.others)

    def unpack(self, packed: Tensor) -> Batch:
        """The batch in the memory of ``packed``, a copy of its one tensor."""
        sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in self.layout]
        pieces = packed.split([size + -size % _ALIGNED for size in sizes])
        tensors = [p[:size].view(dtype).view(shape) for p, size, (dtype, shape) in zip(pieces, sizes, self.layout)]
        kernel, received = (BlockKernel(*tensors[5:]), tensors[4]) if tensors[4:] else (None, None)
        return Batch(*tensors[:4], kernel, received, *self.others)


class CropLoader:
    """The ``Batch``es of the epoch that ``sampler`` says, on ``device``; those of the next are made while it is validated.

    ``num_workers`` processes each make ``prefetch`` batches ahead, from one epoch to the next. To a GPU each batch is one copy
    from pinned memory, for which the host does not wait.
    """

    def __init__(
        self,
        train: Crowd,
        sampler: EpochSampler,
        batch_size: int,
        num_workers: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        self.train, self.sampler, self.batch_size, self.device = train, sampler, batch_size, device
        self._processes = {"num_workers": num_workers, "prefetch_factor": prefetch}
        self._batches: Iterator[Batch] = iter(())
        self._begins: int | None = None  # the epoch whose first batch is the next of these

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.sampler.epoch
        if epoch != self._begins:
            self._batches = self._without_end()
        for left in reversed(range(len(self))):
            batch = next(self._batches)
            self._begins = None if left else epoch + 1
            yield batch

    def close(self) -> None:
        """End the loading processes: those that the interpreter ends when it exits are taken for killed ones."""
        self._batches, self._begins = iter(()), None

    def _without_end(self) -> Iterator[Batch]:
        gc.collect()  # a loading process that freed CUDA graphs of a run before, without a GPU, would be killed
        loader = DataLoader(
            self.train,
            batch_sampler=self.sampler.batches(self.batch_size),
            collate_fn=PackedBatch.collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_loading,
            generator=torch.Generator(),  # of its own, so that workers do not draw from the numbers of dropout
            **(self._processes if self._processes["num_workers"] else {}),
        )
        for batch in loader:
            yield batch.unpack(batch.packed.to(self.device, non_blocking=True))


def _start_loading(_: int) -> None:
    """Ctrl-C reaches the whole process group; the training answers it, and its loading processes end without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The thread that hands out shared memory reports here that the training has gone in the middle of it.
    sys.excepthook = lambda kind, *rest: (
        None if issubclass(kind, (ConnectionError, EOFError)) else sys.__excepthook__(kind, *rest)
    )
