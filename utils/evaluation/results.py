"""What an evaluation leaves: ``results.csv``, the data of its report, densities, figures, a submission."""

from __future__ import annotations

import csv
import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.evaluation.figures import save_density_figure
from utils.evaluation.localisation import locate_windows
from utils.evaluation.report import report_line
from utils.evaluation.windows import Result, Window, density_map, in_threads
from utils.files import atomic_write, make_folder, remove_stale_partials
from utils.h5file import add_array, write_h5
from utils.pixels import STRIDE

COLUMNS = ("image", "truth", "predicted", "error", "relative_error", "seconds", "width", "height")


class Counted(NamedTuple):
    """An image uint8 [H, W, 3], its annotations [N, 2] (None where there are none), and what the network found in it."""

    name: str
    image: np.ndarray
    points: np.ndarray | None
    parts: list[Window]
    predicted: float
    seconds: float
    heads: np.ndarray | None = None  # of ``locate_windows``, once written


def write_results(folder: Path, images: Iterable[Counted], density: str | None, figures: bool) -> Iterator[Counted]:
    """Pass ``images`` on with their heads, written to ``folder`` by a thread; at their end all is on the disk.

    ``density``: "npy", "h5" or None: densities/<image>.npy or .h5 (dataset ``density``), float32 [H, W], people per
    pixel. ``figures``: figures/<image>.png and .pdf.
    """
    for name in ("densities", "figures"):
        for parent, _, _ in os.walk(folder / name):
            remove_stale_partials(Path(parent))
    draw = functools.partial(_draw, make_folder(folder), density, figures)
    with (
        atomic_write(folder / "report_data.jsonl") as partial,
        partial.open("w", encoding="utf-8") as lines,
        atomic_write(folder / "results.csv") as table,
        table.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for counted, line in in_threads(draw, images, 1):
            lines.write(line + "\n")
            rows.writerow(_row(counted))
            yield counted


def _draw(folder: Path, form: str | None, figures: bool, counted: Counted) -> tuple[Counted, str]:
    """Write an image's density and figures -> it with its heads, its line of the report's data."""
    name, image, points, parts, predicted, *_ = counted
    density, heads = density_map(parts).numpy(), locate_windows(parts)
    height, width = density.shape
    size = math.ceil(width / STRIDE), math.ceil(height / STRIDE)
    pixels = height * width / math.prod(size)  # of a cell: below 64 where a side is no multiple of 8
    cells = cv2.resize(density, size, interpolation=cv2.INTER_AREA) * pixels
    file_name = name.lstrip("/")  # of a file from outside the folder: its whole path
    if form:
        path = folder / "densities" / f"{file_name}.{form}"
        make_folder(path.parent)
        if form == "npy":
            with atomic_write(path) as partial:
                np.save(partial, density)
        else:
            with write_h5(path) as file:
                add_array(file, "density", density)
    for suffix in (".png", ".pdf") if figures else ():
        path = folder / "figures" / f"{file_name}{suffix}"
        make_folder(path.parent)
        save_density_figure(path, name, image, points, density)
    return counted._replace(heads=heads), report_line(name, image, cells, points, heads, predicted)


def _row(counted: Counted) -> tuple:
    height, width = counted.image.shape[:2]
    truth, error, relative = "", math.nan, math.nan
    if counted.points is not None:
        truth = len(counted.points)
        error = counted.predicted - truth
        relative = error / truth if truth else math.nan
    numbers = counted.predicted, error, relative, counted.seconds
    return (counted.name, truth, *("" if math.isnan(n) else f"{n:.4f}" for n in numbers), width, height)


def read_counts(path: Path) -> list[Result]:
    """The images of a ``results.csv``; the truth is NaN where there is none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Result(row["image"], float(row["truth"] or "nan"), float(row["predicted"])) for row in rows]


def save_submission(path: Path, results: Sequence[Result]) -> None:
    """One ``id count`` line an image, as NWPU-Crowd's server takes it."""
    with atomic_write(path) as partial:
        partial.write_text("".join(f"{r.name} {r.predicted:.4f}\n" for r in sorted(results)), encoding="utf-8")
