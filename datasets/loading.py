"""The loading processes of a training."""

from __future__ import annotations

import signal
import sys

import torch
from torch.utils.data import DataLoader

from datasets.crowd import Crowd, collate
from datasets.sampler import EpochSampler
from utils.training.shared_memory import check_shared_memory, tensor_bytes

_MEASURED = 4  # crops at most, of which a batch's bytes are reckoned


def crop_loader(
    train: Crowd,
    sampler: EpochSampler,
    batch_size: int,
    num_workers: int,
    prefetch: int,
    *,
    pin_memory: bool,
    timeout: int = 0,
    processes: int = 1,
) -> DataLoader:
    """A loader of ``Batch``es whose ``num_workers`` processes each make ``prefetch`` batches ahead, from one epoch to the next.

    ``timeout``: seconds without a batch after which something is wrong (0: never). ``processes``: trainings on this machine. Raises ``ValueError`` where shared memory cannot hold the batches under way.
    """
    if num_workers:
        some = [train[index] for index in list(sampler)[: min(batch_size, _MEASURED)]]
        batch = tensor_bytes(collate(some)) * batch_size // len(some)
        check_shared_memory(batch, num_workers, prefetch, batch_size, processes)
    return DataLoader(
        train,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        timeout=timeout if num_workers else 0,
        worker_init_fn=_start_loading,
        generator=torch.Generator(),  # of its own, so that workers do not draw from the numbers of dropout
    )


def _start_loading(_: int) -> None:
    """Ctrl-C reaches the whole process group; the training answers it, and its loading processes end without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The thread that hands out shared memory reports here that the training has gone in the middle of it.
    sys.excepthook = lambda kind, *rest: (
        None if issubclass(kind, (ConnectionError, EOFError)) else sys.__excepthook__(kind, *rest)
    )
