"""The loading processes of a training, and the way of a batch from them to the device."""

from __future__ import annotations

import gc
import itertools
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.crowd import Batch, Crowd, TrainSample, collate
from datasets.sampler import BatchesWithoutEnd, EpochSampler
from GS2D.kernel import BlockKernel

_ALIGNED = 16  # bytes, at least any element's
Layout = list[tuple[torch.dtype, tuple[int, ...]]]
Item, Begun = TypeVar("Item"), TypeVar("Begun")


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, Layout]:
    """Tensors as one, uint8 [bytes], and what ``unpack`` needs: to hand a tensor to another process takes 0.2 ms, of any size."""
    pieces = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors]
    starts = _starts([len(piece) for piece in pieces])
    packed = torch.empty(starts.pop(), dtype=torch.uint8)
    for piece, start in zip(pieces, starts):
        packed[start : start + len(piece)] = piece
    return packed, [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]


def unpack(packed: Tensor, layout: Layout) -> list[Tensor]:
    """The tensors that were packed, in the same memory."""
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in layout]
    places = zip(_starts(sizes), sizes, layout)
    return [packed[start : start + size].view(dtype).view(shape) for start, size, (dtype, shape) in places]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where tensors of so many bytes begin, and the bytes of all."""
    return [0, *itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]


class PackedBatch:
    """A ``Batch`` whose tensors lie in one, so that processes hand over, pin and copy one."""

    def __init__(self, packed: Tensor, layout: Layout, others: tuple) -> None:
        self.packed, self.layout, self.others = packed, layout, others

    @classmethod
    def collate(cls, samples: Sequence[TrainSample]) -> PackedBatch:
        """For ``DataLoader(collate_fn=...)``."""
        batch = collate(samples)
        return cls(*pack([*batch[:4], batch.received, *batch.kernel] if batch.kernel else batch[:4]), batch[6:])

    def pin_memory(self) -> PackedBatch:
        """For ``DataLoader(pin_memory=True)``."""
        return PackedBatch(self.packed.pin_memory(), self.layout, self.others)

    def unpack(self, packed: Tensor) -> Batch:
        """The batch in the memory of ``packed``, a copy of its one tensor."""
        tensors = unpack(packed, self.layout)
        kernel, received = (BlockKernel(*tensors[5:]), tensors[4]) if tensors[4:] else (None, None)
        return Batch(*tensors[:4], kernel, received, *self.others)


def one_ahead(items: Iterable[Item], begin: Callable[[Item], Begun]) -> Iterator[Begun]:
    """``begin(item)`` of each in order; that of the next has been called when one is handed out."""
    begun: list[Begun] = []
    for item in items:
        begun.append(begin(item))
        if len(begun) > 1:
            yield begun.pop(0)
    yield from begun


class CropLoader:
    """The ``Batch``es of the epoch that ``sampler`` says, on ``device``, of a ``DataLoader`` of ``PackedBatch``es without end.

    Those of the next epoch are made while this one is used up, validated and written down.
    On a GPU each is one copy from pinned memory on a stream of its own, which begins while the batch before it is used: the
    thread that launches operations waits for nothing, and neither does the device unless the copy is late.
    """

    def __init__(self, loader: DataLoader, batches: BatchesWithoutEnd, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.batch_size, self.sampler = batches.batch_size, batches.sampler
        self._batches: Iterator[Batch] = iter(())
        self._begins: int | None = None  # the epoch whose first batch is the next of these

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.sampler.epoch
        if epoch != self._begins:
            self._batches = self._without_end()
        for left in reversed(range(len(self))):
            batch = next(self._batches)
            self._begins = None if left else epoch + 1
            yield batch

    def _without_end(self) -> Iterator[Batch]:
        gc.collect()  # a loading process that freed CUDA graphs of a run before, without a GPU, would be killed
        if self.device.type != "cuda":
            yield from (batch.unpack(batch.packed) for batch in self.loader)
            return
        stream = torch.cuda.Stream(self.device)

        def begin(batch: PackedBatch) -> tuple[PackedBatch, Tensor, torch.cuda.Event]:
            with torch.cuda.stream(stream):
                return batch, batch.packed.to(self.device, non_blocking=True), stream.record_event()

        for batch, packed, copied in one_ahead(self.loader, begin):
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            packed.record_stream(current)  # its memory is not given to another while this stream works with it
            yield batch.unpack(packed)


def crop_loader(
    train: Crowd, sampler: EpochSampler, batch_size: int, num_workers: int, prefetch: int, device: torch.device
) -> CropLoader:
    """A loader whose ``num_workers`` processes each make ``prefetch`` batches ahead, from one epoch to the next."""
    batches = BatchesWithoutEnd(sampler, batch_size)
    loader = DataLoader(
        train,
        batch_sampler=batches,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=PackedBatch.collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_loading,
        generator=torch.Generator(),  # of its own, so that workers do not draw from the numbers of dropout
    )
    return CropLoader(loader, batches, device)


def _start_loading(_: int) -> None:
    """Ctrl-C reaches the whole process group; the training answers it, and its loading processes end without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The thread that hands out shared memory reports here that the training has gone in the middle of it.
    sys.excepthook = lambda kind, *rest: (
        None if issubclass(kind, (ConnectionError, EOFError)) else sys.__excepthook__(kind, *rest)
    )
