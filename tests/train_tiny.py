"""``train_gs.py`` with the small network, for runs in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from training_runs import Tiny  # noqa: E402

import train_gs  # noqa: E402
from utils.cli import run_script  # noqa: E402

Tiny.dropout = 0  # each process would draw a mask of its own
train_gs.build_model = Tiny

if __name__ == "__main__":
    run_script(train_gs.main)
