"""One process of a training run, or several: they stop together, and what a user can cause ends in one line."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from utils.cli import interrupted_by_sigterm, one_line
from utils.device import network_errors
from utils.lock import lock_folder
from utils.training.run_folder import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NotFinite(ValueError):
    """A loss or gradient that is not finite, of the images ``names``, at a batch of the epoch."""

    def __init__(self, what: str, epoch: int, batch: int, names: Sequence[str]) -> None:
        where = f"epoch {epoch}, batch {batch}: the {what} of {', '.join(names)}"
        super().__init__(f"{where} is not finite; lower --lr, or mend these images (the epochs before are kept)")
        # Who met a loss is named before those whose gradients it broke, who could not read a batch before all.
        self.urgency = 2 if what == "loss" else 1


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
    alone = lock_folder(folder.path) if fabric.is_global_zero else contextlib.nullcontext()
    with network_errors(remedy), alone, interrupted_by_sigterm():
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


@contextlib.contextmanager
def agreed(fabric: Fabric) -> Iterator[None]:
    """A block that every process runs for itself, without waiting for the others in it: if it fails on one, it does on all.

    All raise, with the line of one that failed, instead of waiting for it until a connection breaks.
    """
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    rank, processes = fabric.global_rank, fabric.world_size
    urgency = getattr(error, "urgency", 3) if error else 0
    code = torch.tensor(float(urgency * processes + rank), device=fabric.device)
    worst = int(fabric.all_reduce(code, reduce_op="max"))
    if worst >= processes:
        line = fabric.broadcast(one_line(error) if error else "", src=worst % processes) if processes > 1 else ""
        raise error if rank == worst % processes else ValueError(line)
