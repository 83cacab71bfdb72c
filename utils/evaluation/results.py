"""What an evaluation leaves: ``results.csv``, ``summary.json``, the report, densities, figures, a submission."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from utils.evaluation.figures import save_density_figure
from utils.evaluation.localisation import localisation_scores, locate_windows
from utils.evaluation.report import report_line
from utils.evaluation.windows import Result, Window, density_map
from utils.files import atomic_write, make_folder, remove_stale_partials
from utils.h5file import add_array, write_h5
from utils.pixels import STRIDE

COLUMNS = ("image", "truth", "predicted", "error", "relative_error", "seconds", "width", "height")
AHEAD = 4  # results that may wait to be written


@contextlib.contextmanager
def results_folder(folder: Path, density: str | None, figures: bool) -> Iterator[ResultsFolder]:
    """A ``ResultsFolder`` that writes to ``folder``; at the end of the block all is on the disk."""
    for name in ("densities", "figures"):
        for parent, _, _ in os.walk(folder / name):
            remove_stale_partials(Path(parent))
    with (
        atomic_write(make_folder(folder) / "report_data.jsonl") as partial,
        partial.open("w", encoding="utf-8") as lines,
    ):
        thread = ThreadPoolExecutor(1)
        try:
            results = ResultsFolder(folder, density, figures, lines, thread)
            yield results
            for future in results.waiting:
                future.result()
        finally:
            thread.shutdown(cancel_futures=True)
        with atomic_write(folder / "results.csv") as table, table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *results.rows])


class ResultsFolder:
    """Writes what ``add`` is given to ``folder``, in a thread of its own.

    The thread also draws the map of what ``predict`` found and looks for heads, which ``heads`` then has, and ``truths`` the
    annotations, of each image in order.
    ``density``: "npy", "h5" or None: densities/<image>.npy or .h5 (dataset ``density``), float32 [H, W], people per
    pixel. ``figures``: figures/<image>.png and .pdf.
    """

    def __init__(
        self, folder: Path, density: str | None, figures: bool, lines: TextIO, thread: ThreadPoolExecutor
    ) -> None:
        self.folder, self.density, self.figures, self.lines, self.thread = folder, density, figures, lines, thread
        self.rows: list[tuple] = []
        self.heads: list[np.ndarray] = []
        self.truths: list[np.ndarray | None] = []
        self.waiting: list[Future] = []

    def add(
        self,
        name: str,
        image: np.ndarray,
        points: np.ndarray | None,
        parts: list[Window],
        predicted: float,
        seconds: float,
    ) -> None:
        """An image uint8 [H, W, 3], its annotations [N, 2] (None where there are none) and what the network found in it."""
        if len(self.waiting) >= AHEAD:
            self.waiting.pop(0).result()
        self.waiting.append(self.thread.submit(self._write, name, image, points, parts, predicted, seconds))

    def _write(self, name, image, points, parts, predicted, seconds) -> None:
        density, heads = density_map(parts).numpy(), locate_windows(parts)
        self.heads.append(heads)
        self.truths.append(points)
        height, width = density.shape
        size = math.ceil(width / STRIDE), math.ceil(height / STRIDE)
        pixels = height * width / math.prod(size)  # of a cell: below 64 where a side is no multiple of 8
        cells = cv2.resize(density, size, interpolation=cv2.INTER_AREA) * pixels
        self.lines.write(report_line(name, image, cells, points, heads, predicted) + "\n")
        file_name = name.lstrip("/")  # of a file from outside the folder: its whole path
        if self.density:
            path = self.folder / "densities" / f"{file_name}.{self.density}"
            make_folder(path.parent)
            if self.density == "npy":
                with atomic_write(path) as partial:
                    np.save(partial, density)
            else:
                with write_h5(path) as file:
                    add_array(file, "density", density)
        if self.figures:
            for suffix in (".png", ".pdf"):
                path = self.folder / "figures" / f"{file_name}{suffix}"
                make_folder(path.parent)
                save_density_figure(path, name, image, points, density)
        error = relative = math.nan
        if points is not None:
            error = predicted - len(points)
            relative = error / len(points) if len(points) else math.nan
        truth = "" if points is None else len(points)
        numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in (predicted, error, relative, seconds)]
        self.rows.append((name, truth, *numbers, image.shape[1], image.shape[0]))


def localisation(heads: Sequence[np.ndarray], points: Sequence[np.ndarray | None]) -> dict[str, Any] | None:
    """The ``localisation`` of ``summary.json``: the scores of the annotated images; None without one."""
    annotated = [(found, truth) for found, truth in zip(heads, points, strict=True) if truth is not None]
    return localisation_scores(*zip(*annotated)) if annotated else None


def read_counts(path: Path) -> list[Result]:
    """The images of a ``results.csv``; the truth is NaN where there is none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Result(row["image"], float(row["truth"] or "nan"), float(row["predicted"])) for row in rows]


def save_submission(path: Path, results: Sequence[Result]) -> None:
    """One ``id count`` line an image, as NWPU-Crowd's server takes it."""
    with atomic_write(path) as partial:
        partial.write_text("".join(f"{r.name} {r.predicted:.4f}\n" for r in sorted(results)), encoding="utf-8")
