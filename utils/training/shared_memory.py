"""Loading processes hand batches over in ``/dev/shm``: in one piece, and where that is small, as in containers, with a word."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

FOLDER = "/dev/shm"
_ALIGNED = 16  # bytes, at least any element's

Layout = list[tuple[torch.dtype, tuple[int, ...]]]


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


@contextlib.contextmanager
def shared_memory_errors(num_workers: int, batch_size: int, timeout: int) -> Iterator[None]:
    """Turn what a lack of shared memory looks like into that one line, and a loader that gives nothing into another."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        if num_workers and isinstance(error, (EOFError, ConnectionError)):
            # A process that was killed while it handed a batch over, before the loader has noticed.
            raise RuntimeError("DataLoader worker exited unexpectedly") from error
        if "DataLoader timed out" in text:
            raise ValueError(
                f"no batch came for --loading-timeout {timeout} seconds: the disk of --data-dir does not answer, or {FOLDER} is "
                "full (docker run --shm-size); --num-workers 0 shows which"
            ) from None
        is_full = num_workers and text == "[Errno 28] No space left on device"
        if is_full or "shared memory" in text or "Bus error" in text:
            raise ValueError(
                f"not enough shared memory in {FOLDER} for --num-workers {num_workers} and --batch-size {batch_size}; "
                "enlarge it (docker run --shm-size), or lower --num-workers (0 needs none) or --prefetch"
            ) from None
        raise
