"""The runner of experiments: trainings and evaluations side by side, each going on where it stopped, and tables of what they found.

See ``compare_losses.py``, which says what is trained and what the table shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.cli import interrupted_by_sigterm, one_line
from utils.evaluation import Result
from utils.evaluation.results import read_counts
from utils.files import atomic_write, list_images, make_folder, points_path, read_points, write_json
from utils.images import image_size
from utils.training.run_folder import MACHINE_OPTIONS, RunFolder, run_options
from utils.training.train_options import parse_train_options

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED = 4073
WAIT = 0.1  # seconds from one look at what runs to the next


class Run(NamedTuple):
    """One training and the evaluation of its best model."""

    name: str
    seed: int
    folder: Path
    split: str  # that is counted in the end
    commands: list[list[str]]  # scripts of this project with their options
    effective: dict[str, Any]  # what the result depends on


def train_options(options: Sequence[str]) -> argparse.Namespace:
    """What ``train_gs.py`` would make of these; wrong ones end the script."""
    return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, options)


def plan(name: str, seed: int, folder: Path, split: str, options: Sequence[str]) -> Run:
    """A run with these options of ``train_gs.py``; wrong ones end the script."""
    options, best = [*options, "--seed", str(seed), "--save-dir", str(folder)], RunFolder(folder).best_path
    parsed = train_options(options)
    effective = {key: value for key, value in run_options(parsed).items() if key not in MACHINE_OPTIONS}
    effective |= {"data": str(parsed.data_dir.resolve()), "split": split}
    anew = [] if RunFolder(folder).checkpoints() else ["--overwrite"]  # what was tidied up has nothing to go on from
    test = ["test.py", "--save-path", str(best), "--data-dir", str(parsed.data_dir), "--split", split]
    test += ["--device", parsed.device.partition(",")[0], "--window", str(parsed.window), "--out", str(folder / split)]
    return Run(name, seed, folder, split, [["train_gs.py", *options, *anew], test], effective)


def read_result(run: Run) -> dict[str, Any] | None:
    """What a finished run found, or None; ``ValueError`` where it had other options."""
    path = run.folder / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    for key, value in run.effective.items():
        if result["options"].get(key) != value:
            was = f"{key} {result['options'].get(key)} instead of {value}"
            raise ValueError(f"{path}: is of a run with {was}; choose another folder, or remove {run.folder}")
    return result


def run_all(runs: Sequence[Run], jobs: int, report: Callable[[], object]) -> int:
    """Carry out runs, ``jobs`` at a time, with ``report`` behind each -> how many failed.

    One that fails is named on stderr and the others go on. Ctrl-C, and a request to end this process, end what runs.
    """
    waiting, failures = list(runs), 0
    running: dict[subprocess.Popen, tuple[Run, Iterator[subprocess.Popen]]] = {}

    def go_on(run: Run, children: Iterator[subprocess.Popen]) -> int:
        """Start the next command of a run, or finish it -> how many failed."""
        try:
            if child := next(children, None):
                running[child] = run, children
            else:
                report()
        except (OSError, ValueError) as error:
            print(f"error: {run.name}, seed {run.seed}: {one_line(error)}", file=sys.stderr)
            return 1
        return 0

    with interrupted_by_sigterm():
        try:
            while waiting or running:
                for child in [child for child in running if child.poll() is not None]:
                    failures += go_on(*running.pop(child))
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    failures += go_on(run, carry_out(run, jobs))
                time.sleep(WAIT)
        finally:
            for child in running:
                child.terminate()
            for child in running:  # a training writes what no checkpoint of it holds
                child.wait()
    if failures:
        print(f"error: {failures} of {len(runs)} runs failed; the same command tries them again", file=sys.stderr)
    return failures


def carry_out(run: Run, jobs: int) -> Iterator[subprocess.Popen]:
    """Start one command of a run after another; behind the last the result is written and the checkpoints are removed.

    With several ``jobs`` a command has one thread. ``ValueError`` with the last error of one that fails.
    """
    folder, log = RunFolder(make_folder(run.folder)), run.folder / "log.txt"
    for command in run.commands:
        child = start(command, log, {**os.environ, "OMP_NUM_THREADS": "1"} if jobs > 1 else None)
        yield child
        if child.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
            raise ValueError(f"{errors[-1] if errors else f'exit code {child.returncode}'} (its whole output: {log})")
    epochs, best = folder.metrics(), folder.best()
    result = {
        "loss": run.name,
        "seed": run.seed,
        **scores(run.folder / run.split),
        "best_epoch": best["epoch"],
        "val_mae": best["val_mae"],
        "val_mse": best["val_mse"],
        "epochs": len(epochs),
        "train_seconds": sum(epoch["seconds"] for epoch in epochs),
        "loss_seconds": sum(epoch["time"]["loss"] for epoch in epochs),
        "options": run.effective,
    }
    write_json(run.folder / "result.json", result)
    for path in folder.checkpoints():
        path.unlink()
    print(f"{run.folder}: MAE {result['mae']:.2f}, MSE {result['mse']:.2f}", flush=True)


def start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen:
    """Start a script, its output in ``log``."""
    with log.open("ab") as output:
        line = [sys.executable, str(ROOT / command[0]), *command[1:]]
        return subprocess.Popen(line, env=environment, stdout=output, stderr=output)


def scores(folder: Path) -> dict[str, float | None]:
    """What ``test.py`` left in ``folder``: MAE, MSE, F1, and the mean error of the pictures with fewer and with more people.

    An F1 is None where there are neither objects nor annotations.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    counts = [count for count in read_counts(folder / "results.csv") if not math.isnan(count.truth)]
    errors = [count.predicted - count.truth for count in sorted(counts, key=lambda count: count.truth)]
    middle = len(errors) // 2
    return {
        "mae": summary["mae"]["value"],
        "mse": summary["mse"]["value"],
        "f1": summary["localisation"]["8"]["f1"],
        "f1_4px": summary["localisation"]["4"]["f1"],
        "sparse_error": statistics.mean(errors[:middle] or errors),
        "dense_error": statistics.mean(errors[middle:]),
    }


def recipe(loss: str, dataset: str) -> list[str]:
    """The option that takes a loss's published recipe, that of the data set where there is one; empty for gst's, the default."""
    paths = (ROOT / "configs" / f"{name}.yml" for name in (f"{loss}_{dataset}", loss))
    return next((["--config", str(path)] for path in paths if path.is_file()), [])


def guess_counts(data: Path, split: str) -> list[Result]:
    """What the simplest predictor says of ``split``: the mean density of train and val, times the size of each image."""

    def measured(images: Sequence[Path]) -> list[tuple[int, int]]:
        """(annotations, pixels) of each."""
        return [(len(read_points(points_path(image))), math.prod(image_size(image))) for image in images]

    known = [image for name in {"train", "val"} - {split} for image in list_images(data / name)]
    density = statistics.mean(people / pixels for people, pixels in measured(known))
    images = list_images(data / split)
    return [Result(i.stem, people, density * pixels) for i, (people, pixels) in zip(images, measured(images))]


def spread(results: Sequence[Mapping[str, Any]], key: str, decimals: int = 1, sign: str = "") -> str:
    """Mean ± standard deviation (n - 1) over the results that have this figure; empty where none has."""
    values = [result[key] for result in results if result[key] is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


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
