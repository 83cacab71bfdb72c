"""``train_gs.py`` with the small network, for runs in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from training_runs import Tiny  # noqa: E402

import train_gs  # noqa: E402
from utils.cli import run_script  # noqa: E402

Tiny.dropout = 0  # each process would draw a mask of its own
if os.environ.get("BROKEN_RANK") == os.environ.get("RANK", "0"):

    def not_a_number(self, images, forward=Tiny.forward, calls=[]):  # noqa: B006
        """The third density of this process is NaN."""
        calls.append(1)
        prediction = forward(self, images)
        return prediction._replace(density=prediction.density * float("nan")) if len(calls) == 3 else prediction

    Tiny.forward = not_a_number
if os.environ.get("UNREADABLE_RANK") == os.environ.get("RANK", "0"):

    def unreadable(self, index, read=train_gs.Crowd.__getitem__, calls=[]):  # noqa: B006
        """The third sample, of training or of validation, that this process asks for."""
        calls.extend([1] * (self.split == os.environ["UNREADABLE_SPLIT"]))
        if len(calls) == 3:
            raise ValueError(f"{self.images[index[-1] if isinstance(index, tuple) else index]}: cannot be read")
        return read(self, index)

    train_gs.Crowd.__getitem__ = unreadable
train_gs.build_model = Tiny

if __name__ == "__main__":
    run_script(train_gs.main)
