"""Progress bars in log files."""

from __future__ import annotations

import sys
import time

import pytest
from tqdm import tqdm

from utils.cli import ProgressBar


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
