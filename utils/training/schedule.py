"""The learning rate over a run, and how many epochs fit into a given time."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

WARM_UP = 0.05  # of the run
_SLACK = 0.97  # of the time that is left may be planned


def rate_factor(schedule: str, progress: float, warm_up: float = 0.0) -> float:
    """Factor on the learning rate when ``progress`` (0 to 1) of the run is done, of which ``warm_up`` is a linear rise.

    It has no state, so that a resumed run agrees.
    """
    warm_up = warm_up or (WARM_UP if schedule == "warmup-cosine" else 0.0)
    rise = min(1.0, progress / warm_up) if warm_up else 1.0
    return rise * (1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2)


def set_rates(optimizer: torch.optim.Optimizer, arguments: argparse.Namespace, done: float) -> None:
    """Give the optimizer the rates of a run of which ``done`` epochs are done: of the features and of what is behind them."""
    factor = rate_factor(arguments.lr_schedule, done / arguments.epochs, arguments.warm_up_epochs / arguments.epochs)
    for group, rate in zip(optimizer.param_groups, (arguments.lr, arguments.head_lr)):
        group["lr"] = rate * factor


def epochs_to_begin_with(minutes: float, epochs: int, first_epoch: int, saved: Mapping[str, Any]) -> int:
    """Epochs of a run of so many ``minutes``, before its pace is known; ``first_epoch`` where it is done.

    ``saved``: the checkpoint that it goes on from. It is done if the plan of the same minutes ended there.
    """
    is_done = saved.get("epochs") == first_epoch and saved.get("config", {}).get("minutes") == minutes
    return first_epoch if is_done else max(epochs, first_epoch + 1)


class TimeBudget:
    """How many epochs end within the ``minutes`` of a run, by the pace so far, validations and checkpoints included.

    ``spent``: seconds that the run took before it was interrupted.
    """

    def __init__(self, minutes: float, first_epoch: int, spent: float = 0.0) -> None:
        self.minutes, self.first_epoch = minutes, first_epoch
        self._begin = time.monotonic() - spent
        self._spent = spent
        # Seconds and epochs when it was done: it pays for starting up.
        self._first_step: tuple[float, float] | None = None

    def elapsed(self) -> float:
        """Seconds of the run; those of one process are what all go by."""
        return time.monotonic() - self._begin

    def epochs(self, done: float, elapsed: float) -> int:
        """All epochs of the run when ``done`` of them, since its very beginning, are; at least the one under way.

        Raises ``ValueError`` where not even the first fits. A run that goes on does one epoch more at least.
        """
        begin, before = self._first_step or (self._spent, self.first_epoch)
        self._first_step = self._first_step or (elapsed, done)
        pace = (elapsed - begin) / (done - before)  # seconds an epoch
        total = done + _SLACK * max(60 * self.minutes - elapsed, 0.0) / pace
        if total < self.first_epoch + 1 and done < self.first_epoch + 1 and not self._spent:
            takes = f"an epoch takes about {pace / 60:.1f} minutes"
            raise ValueError(f"--minutes {self.minutes:g}: {takes}; give more, or --epochs")
        return max(math.floor(total), math.ceil(done))
