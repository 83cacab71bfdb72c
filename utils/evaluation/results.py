"""What an evaluation leaves: ``results.csv``, ``summary.json``, the report, densities, figures, a submission."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from utils.evaluation.figures import save_density_figure
from utils.evaluation.localisation import localisation_scores, locate_windows
from utils.evaluation.report import report_line
from utils.evaluation.windows import Result, Window, density_map
from utils.files import atomic_write, make_folder, remove_stale_partials
from utils.h5file import add_array, write_h5
from utils.pixels import STRIDE

Item = TypeVar("Item")
COLUMNS = ("image", "truth", "predicted", "error", "relative_error", "seconds", "width", "height")
AHEAD = 4  # images that may wait for the network, and results that may wait to be written


class Counted(NamedTuple):
    """One image and what the network found in it."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    points: np.ndarray | None  # [N, 2], (x, y), pixels; None where nobody annotated the image
    density: np.ndarray  # [H, W], people per pixel
    heads: np.ndarray  # [M, 3]: x, y, mass
    predicted: float
    seconds: float

    @property
    def truth(self) -> float:
        return math.nan if self.points is None else float(len(self.points))


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, of which up to ``AHEAD`` are made by a thread while their predecessors are used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(next, iterator, end) for _ in range(AHEAD)]
        try:
            while (item := waiting.pop(0).result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()


class ResultsFolder:
    """Writes what ``add`` is given, in a thread of its own, to ``folder``; a context, at whose end all is on the disk.

    ``add_windows`` takes what ``predict`` found; the thread also draws its map and looks for heads, which ``heads`` then has,
    and ``truths`` the annotations, of each image in order.
    ``density``: "npy", "h5" or None: densities/<image>.npy or .h5 (dataset ``density``), float32 [H, W], people per
    pixel. ``figures``: figures/<image>.png and .pdf.
    """

    def __init__(self, folder: Path, density: str | None, figures: bool) -> None:
        self.folder, self.density, self.figures = make_folder(folder), density, figures
        self.rows: list[tuple] = []
        self.heads: list[np.ndarray] = []
        self.truths: list[np.ndarray | None] = []

    def __enter__(self) -> ResultsFolder:
        for name in ("densities", "figures"):
            for parent, _, _ in os.walk(self.folder / name):
                remove_stale_partials(Path(parent))
        self.stack = contextlib.ExitStack()
        partial = self.stack.enter_context(atomic_write(self.folder / "report_data.jsonl"))
        self.lines = self.stack.enter_context(partial.open("w", encoding="utf-8"))
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[Future] = []
        return self

    def add(self, counted: Counted) -> None:
        self._later(self._write, counted)

    def add_windows(
        self,
        name: str,
        image: np.ndarray,
        points: np.ndarray | None,
        parts: list[Window],
        predicted: float,
        seconds: float,
    ) -> None:
        self._later(self._write_windows, name, image, points, parts, predicted, seconds)

    def _later(self, write: Callable[..., None], *found: Any) -> None:
        if len(self.waiting) >= AHEAD:
            self.waiting.pop(0).result()
        self.waiting.append(self.thread.submit(write, *found))

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.thread.shutdown(cancel_futures=error is not None)
            if error is None:
                for future in self.waiting:
                    future.result()
                self._write_table()
        except BaseException as failure:
            if not self.stack.__exit__(type(failure), failure, failure.__traceback__):
                raise
        else:
            self.stack.__exit__(kind, error, traceback)

    def _write_windows(self, name, image, points, parts, predicted, seconds) -> None:
        density, heads = density_map(parts).numpy(), locate_windows(parts)
        self.heads.append(heads)
        self.truths.append(points)
        self._write(Counted(name, image, points, density, heads, predicted, seconds))

    def _write(self, counted: Counted) -> None:
        height, width = counted.density.shape
        size = math.ceil(width / STRIDE), math.ceil(height / STRIDE)
        pixels = height * width / math.prod(size)  # of a cell: below 64 where a side is no multiple of 8
        cells = cv2.resize(counted.density, size, interpolation=cv2.INTER_AREA) * pixels
        line = report_line(counted.name, counted.image, cells, counted.points, counted.heads, counted.predicted)
        self.lines.write(line + "\n")
        name = counted.name.lstrip("/")  # of a file from outside the folder: its whole path
        if self.density:
            path = self.folder / "densities" / f"{name}.{self.density}"
            make_folder(path.parent)
            values = counted.density.astype(np.float32)
            if self.density == "npy":
                with atomic_write(path) as partial:
                    np.save(partial, values)
            else:
                with write_h5(path) as file:
                    add_array(file, "density", values)
        if self.figures:
            for suffix in (".png", ".pdf"):
                path = self.folder / "figures" / f"{name}{suffix}"
                make_folder(path.parent)
                save_density_figure(path, counted.name, counted.image, counted.points, counted.density)
        truth, predicted = counted.truth, counted.predicted
        error = predicted - truth
        relative = error / truth if truth else math.nan
        numbers = [f"{truth:g}", f"{predicted:.4f}", f"{error:.4f}", f"{relative:.4f}", f"{counted.seconds:.4f}"]
        numbers = ["" if number == "nan" else number for number in numbers]
        self.rows.append((counted.name, *numbers, counted.image.shape[1], counted.image.shape[0]))

    def _write_table(self) -> None:
        with atomic_write(self.folder / "results.csv") as partial:
            with partial.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *self.rows])


def localisation(heads: Sequence[np.ndarray], points: Sequence[np.ndarray | None]) -> dict[str, Any] | None:
    """The ``localisation`` of ``summary.json``: scores at each radius and over QNRF's radii; None without annotations."""
    annotated = [(found, truth) for found, truth in zip(heads, points, strict=True) if truth is not None]
    if not annotated:
        return None
    scores = localisation_scores(*zip(*annotated))
    places = {
        f"{entry['radius']:g}": {key: entry[key] for key in ("precision", "recall", "f1")} for entry in scores["at"]
    }
    return {**places, "qnrf": scores["qnrf"]}


def read_counts(path: Path) -> list[Result]:
    """The images of a ``results.csv``; the truth is NaN where there is none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Result(row["image"], float(row["truth"] or "nan"), float(row["predicted"])) for row in rows]


def save_submission(path: Path, results: Sequence[Result]) -> None:
    """One ``id count`` line an image, as NWPU-Crowd's server takes it."""
    with atomic_write(path) as partial:
        partial.write_text("".join(f"{r.name} {r.predicted:.4f}\n" for r in sorted(results)), encoding="utf-8")
