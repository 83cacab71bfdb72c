"""One process of a training run, or several: they stop together, and what a user can cause ends in one line."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from utils.cli import interrupted_by_sigterm, one_line
from utils.device import network_errors
from utils.lock import lock_folder
from utils.training.run_folder import RunFolder
from utils.training.shared_memory import shared_memory_errors

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NonFinite(ValueError):
    """A loss or gradient that is not finite, and the batches that it came from, by their place in the epoch."""

    def __init__(self, what: str, batches: range) -> None:
        super().__init__(what)
        self.what, self.batches = what, batches

    def places(self, batch_size: int) -> slice:
        """Where their crops stand in the epoch's order."""
        return slice(self.batches.start * batch_size, self.batches.stop * batch_size)


def print_once(fabric: Fabric, text: str) -> None:
    """Print on one process of the run (``Fabric.print`` would on one of each machine)."""
    if fabric.is_global_zero:
        print(text)


def crops_of_a_step(fabric: Fabric, arguments: argparse.Namespace) -> int:
    """How many crops an optimizer's step averages over, on all processes together."""
    return fabric.world_size * arguments.batch_size * arguments.accumulate


@contextlib.contextmanager
def training_process(fabric: Fabric, folder: RunFolder, arguments: argparse.Namespace) -> Iterator[None]:
    """The block trains in ``folder``, alone there; running out of memory, Ctrl-C and SIGTERM end it with a remedy."""
    size = f"--batch-size {arguments.batch_size} and --crop-size {arguments.crop_size}"
    remedy = f"lower one of {size} (--accumulate makes up for it), --num-workers, or take --precision bf16-mixed"
    remedy += ", or --no-graphs" if fabric.device.type == "cuda" and arguments.graphs is not False else ""
    loading = shared_memory_errors(arguments.num_workers, arguments.batch_size, arguments.loading_timeout)
    alone = lock_folder(folder.path) if fabric.is_global_zero else contextlib.nullcontext()
    with network_errors(remedy), loading, alone, interrupted_by_sigterm():
        done = False
        try:
            yield
            fabric.barrier()  # nobody leaves while others still need it
            done = True
        except KeyboardInterrupt:
            command = f"python train_gs.py --config {shlex.quote(str(folder.path / 'config.yml'))}"
            anew = folder.is_begun and (arguments.resume == "none" or arguments.overwrite)
            raise KeyboardInterrupt(f"{command} goes on where this one stopped" if anew else "") from None
        finally:
            # Threads of gloo that end with the interpreter abort it; NCCL may wait here for a process that has failed.
            if torch.distributed.is_initialized() and (done or torch.distributed.get_backend() == "gloo"):
                torch.distributed.destroy_process_group()


class Stopped(Exception):
    """All processes stop, since one could not go on: its ``error`` there, None on the others."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error


def stop_together(fabric: Fabric, unread: Exception | None, broken: NonFinite | None) -> None:
    """Raise ``Stopped`` on all processes if one could not read a batch or met what is not finite: the cause on that one.

    Where one has read nothing, or met a loss that is not finite, the gradients of the others are not finite either.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    weight = 3 if unread else 0 if broken is None else 2 if broken.what == "loss" else 1
    worst = int(
        fabric.all_reduce(torch.tensor(float(weight * processes + rank), device=fabric.device), reduce_op="max")
    )
    if worst >= processes:
        raise Stopped(unread or broken if worst % processes == rank else None)


@contextlib.contextmanager
def agreed(fabric: Fabric) -> Iterator[None]:
    """A block that every process runs for itself, without waiting for the others in it: if it fails on one, it does on all.

    All raise with the line of the one that failed, instead of waiting for it until a connection breaks.
    """
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    processes = fabric.world_size
    code = torch.tensor(float(fabric.global_rank if error else -1), device=fabric.device)
    first = int(fabric.all_reduce(code, reduce_op="max"))
    if first >= 0:
        line = fabric.broadcast(one_line(error) if error else "", src=first) if processes > 1 else ""
        raise error or ValueError(line)
