"""``train_gs.py`` with the small network, for runs in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from training_runs import Tiny  # noqa: E402

import models  # noqa: E402
import train_gs  # noqa: E402
from utils.cli import run_script  # noqa: E402


def use_tiny():
    """Take the small network, and break what the environment names: the third density or the third sample of a process."""
    Tiny.dropout = 0  # each process would draw a mask of its own
    train_gs.build_model = models.build_model = Tiny
    rank = os.environ.get("RANK", "0")
    if os.environ.get("BROKEN_RANK") == rank:
        forward = Tiny.forward

        def not_a_number(self, images, calls=[]):  # noqa: B006
            calls.append(1)
            prediction = forward(self, images)
            return prediction._replace(density=prediction.density * float("nan")) if len(calls) == 3 else prediction

        Tiny.forward = not_a_number
    if os.environ.get("UNREADABLE_RANK") == rank:
        read = train_gs.Crowd.__getitem__

        def unreadable(self, index, calls=[]):  # noqa: B006
            calls.extend([1] * (self.split == os.environ["UNREADABLE_SPLIT"]))
            if len(calls) == 3:
                raise ValueError(f"{self.images[index]}: cannot be read")
            return read(self, index)

        train_gs.Crowd.__getitem__ = unreadable


if __name__ == "__main__":
    use_tiny()
    run_script(train_gs.main)
