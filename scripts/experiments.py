"""What the scripts of whole experiments share: the mean predictor, child processes that end with their parent, tables."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.evaluation import Result
from utils.files import atomic_write, list_images, points_path, read_points
from utils.images import load_image


def mean_density(images: Sequence[Path]) -> float:
    """Annotations per pixel of each prepared image, averaged over ``images``."""
    return float(np.mean([len(read_points(points_path(image))) / _pixels(image) for image in images]))


def guess_counts(data: Path, split: str) -> list[Result]:
    """What the simplest predictor says of ``split``: the mean density of train and val, times the size of each image."""
    known = [image for name in {"train", "val"} - {split} for image in list_images(data / name)]
    density, images = mean_density(known), list_images(data / split)
    return [Result(image.stem, len(read_points(points_path(image))), density * _pixels(image)) for image in images]


def _pixels(image: Path) -> int:
    height, width = load_image(image).shape[:2]
    return height * width


class Children:
    """Commands whose output goes to log files, and which end when this process does."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.lock, self.stopped = threading.Lock(), False

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Wait for one command; ``ValueError`` with its last line of output where it fails."""
        with log.open("ab") as output:
            with self.lock:
                if self.stopped:
                    raise ValueError("stopped")
                child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
                self.running.add(child)
            code = child.wait()
            with self.lock:
                self.running.discard(child)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in reversed(lines) if "error: " in line), f"exit code {code}")
            raise ValueError(f"{said.partition('error: ')[2] or said} (all it said: {log})")

    def stop(self) -> None:
        """End what runs and let nothing new begin."""
        with self.lock:
            self.stopped, running = True, list(self.running)
            for child in running:
                child.terminate()
        for child in running:  # a training writes what no checkpoint of it holds
            child.wait()


@contextmanager
def ended_with_us() -> Iterator[Children]:
    """Children that a failure, Ctrl-C or a request to end this process takes along."""
    children = Children()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield children
    finally:
        children.stop()
        signal.signal(signal.SIGTERM, before)


def write_table(folder: Path, name: str, rows: Sequence[Sequence[object]], remark: str = "") -> str:
    """Write ``name.md`` and ``name.csv`` of ``rows``, the header first -> the Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    text = "\n".join(lines) + "\n" + (f"\n{remark}\n" if remark else "")
    with atomic_write(folder / f"{name}.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_write(folder / f"{name}.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return text
