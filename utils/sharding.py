"""Which share of the images a process takes, when several work on one data set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Shard(NamedTuple):
    """Share ``index`` (from 0) of ``count``; ``local_rank`` numbers the processes of one machine, for choosing a GPU."""

    index: int = 0
    count: int = 1
    local_rank: int = 0

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th item: neighbours in name are often alike in size, so that shares take about equally long."""
        return list(items[self.index :: self.count])


def parse_shard(text: str) -> Shard:
    """An argparse type: ``i/n``, the i-th of n shares, counted from 1."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share i/n with 1 <= i <= n, such as 2/8")
    return Shard(int(index) - 1, int(count))


def detect_shard() -> Shard:
    """The share by the environment: rank and size of ``torchrun`` or of a SLURM step, times the task of a SLURM array.

    Raises ``ValueError`` where SLURM's tasks are not given by node, which Fabric asks for.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    rank, size, local_rank = 0, 1, 0
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            try:
                environment = kind()
            except RuntimeError as error:  # about --ntasks
                raise ValueError(f"{error} (or give --shard i/n)") from None
            rank, size, local_rank = environment.global_rank(), environment.world_size(), environment.local_rank()
            break
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # Fabric does not look at arrays, whose tasks know nothing of each other
        task, first, count, step = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("COUNT", 1), ("STEP", 1))
        )
        rank, size = (task - first) // step * size + rank, count * size
    return Shard(rank, size, local_rank)
