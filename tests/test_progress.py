"""Progress bars in log files."""

from __future__ import annotations

import contextlib
import io
import sys
import time

import pytest
from tqdm import tqdm
from training_runs import Tiny, make_data

import train_gs
from utils.cli import ProgressBar

OPTIONS = "--crop-size 64 --max-epoch 2 --val-start 0 --val-every 1 --backbone-weights none --device cpu --num-workers 0".split()


@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize("delay", [0, 0.01, 60])
@pytest.mark.parametrize("written", ["first", "last", "both"])
def test_a_bar_in_a_log_file_ends_its_line(updates, delay, written, capsys):
    """tqdm draws a bar behind a line that it writes, in a log file also one that is not due yet."""
    bar = ProgressBar(total=3, delay=delay)
    if written != "last":
        tqdm.write("a line", file=sys.stderr)
    for _ in range(updates):
        bar.update()
        time.sleep(0.005)
    if written != "first":
        tqdm.write("a line", file=sys.stderr)
    bar.close()
    print("the final line", file=sys.stderr)
    *lines, end = capsys.readouterr().err.split("\n")
    lines = [line.rpartition("\r")[2] for line in lines]  # what is left to see of each
    assert not end and lines[-1] == "the final line" and lines.count("a line") == (2 if written == "both" else 1)
    assert delay != 60 or len(lines) == lines.count("a line") + 1


def test_training_ends_with_a_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("train_gs.build_model", Tiny)
    both = io.StringIO()
    with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):  # a log file that takes both
        monkeypatch.setattr("sys.argv", ["train_gs.py", "--data-dir", str(make_data(tmp_path / "data")), *OPTIONS])
        monkeypatch.chdir(tmp_path)
        train_gs.main()
    lines = both.getvalue().splitlines()
    assert lines[-1].startswith("best 2 MSE + MAE on val: ") and lines[-2].startswith("epoch 1: loss ")
    assert not any("train:" in line or "\r" in line for line in lines)
