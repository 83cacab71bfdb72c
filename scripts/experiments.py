"""The runner of experiments: named trainings side by side, each evaluated and resumed where it stopped, and their tables.

An experiment is a list of names with options of train_gs.py, and a table of what the runs found: see ``compare_losses.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.cli import EXIT_FAILED, ProgressBar, default_workers, interrupted_by_sigterm, one_line
from utils.evaluation import Result, mae_mse
from utils.evaluation.results import read_counts
from utils.files import atomic_write, list_images, make_folder, points_path, read_points, write_json
from utils.images import image_size
from utils.training.run_folder import MACHINE_OPTIONS, RunFolder, run_options
from utils.training.train_options import default_loaders, parse_train_options

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST = ROOT / "train_gs.py", ROOT / "test.py"
FIRST_SEED = 4073
RADII = {"f1": "8", "f1_4px": "4"}  # key of a result -> radius in ``summary.json``, pixels

Results = Mapping[str, list[dict[str, Any]]]  # of the finished runs, by name


class Run(NamedTuple):
    """One training: its place, the options of ``train_gs.py``, and what these come to."""

    name: str
    seed: int
    folder: Path
    options: list[str]
    effective: dict[str, Any]  # what the result depends on
    evaluation: list[str]  # options of test.py


def train_options(options: Sequence[str]) -> argparse.Namespace:
    """What ``train_gs.py`` would make of these; wrong ones end the script."""
    return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, options)


def recipe(loss: str, dataset: str) -> list[str]:
    """The option that takes a loss's published recipe, that of the data set where there is one; empty for gst's, the default."""
    paths = (ROOT / "configs" / f"{name}.yml" for name in (f"{loss}_{dataset}", loss))
    return next((["--config", str(path)] for path in paths if path.is_file()), [])


def plan(arguments: argparse.Namespace, passed: Sequence[str], choices: Mapping[str, Sequence[str]]) -> list[Run]:
    """A run of each choice (name -> options of ``train_gs.py``) and seed, seed by seed: a table of all is there early."""
    runs, common = [], ["--data-dir", str(arguments.data)]
    if arguments.jobs > 1:  # trainings on a GPU share the processors; on CPUs each loads for itself
        on_gpu = torch.cuda.is_available() and train_options([*common, *passed]).device != "cpu"
        common += ["--num-workers", str(default_loaders(default_workers() // arguments.jobs) if on_gpu else 0)]
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name, chosen in choices.items():
            folder = arguments.out / f"{name}_seed{seed}"
            options = [*common, *passed, *chosen, "--seed", str(seed), "--save-dir", str(folder)]
            parsed = train_options(options)
            effective = {key: value for key, value in run_options(parsed).items() if key not in MACHINE_OPTIONS}
            effective |= {"data": str(parsed.data_dir.resolve()), "split": arguments.split}
            device = parsed.device.partition(",")[0]
            evaluation = ["--split", arguments.split, "--device", device, "--window", str(parsed.window)]
            runs.append(Run(name, seed, folder, options, effective, evaluation))
    return runs


class Children:
    """A context in which commands run that a failure, Ctrl-C or a request to end this process takes along."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.lock, self.stopped = threading.Lock(), False

    def __enter__(self) -> Children:
        return self

    def run(self, command: Sequence[str], log: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Run one of the project's scripts to its end, its output in ``log`` or, without one, where ours goes.

        ``ValueError`` where it fails, with its last error where that is in a log.
        """
        with log.open("ab") if log else contextlib.nullcontext() as output:
            with self.lock:
                if self.stopped:
                    raise ValueError("stopped")
                into = {"stdout": output, "stderr": subprocess.STDOUT} if log else {}
                child = subprocess.Popen([sys.executable, *command], env=env, **into)
                self.running.add(child)
            code = child.wait()
            with self.lock:
                self.running.discard(child)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []
            last = next((line.partition("error: ")[2] for line in reversed(lines) if "error: " in line), "")
            where = f"its whole output: {log}" if log else "mend it and run this again, finished work is kept"
            raise ValueError(f"{last or f'{Path(command[0]).name} ended with exit code {code}'} ({where})")

    def __exit__(self, *_: object) -> None:
        """End what runs and let nothing new begin."""
        with self.lock:
            self.stopped, running = True, list(self.running)
            for child in running:
                child.terminate()
        for child in running:  # a training writes what no checkpoint of it holds
            child.wait()


def read_result(run: Run) -> dict[str, Any] | None:
    """What a finished run found, or None; ``ValueError`` where it had other options."""
    path = run.folder / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    for key, value in run.effective.items():
        if result["options"].get(key) != value:
            was = f"{key} {result['options'].get(key)} instead of {value}"
            raise ValueError(f"{path}: is of a run with {was}; choose another --out, or remove {run.folder}")
    return result


def execute(run: Run, arguments: argparse.Namespace, children: Children) -> dict[str, Any]:
    """Train and evaluate -> the result, which is also written to the run's folder; checkpoints are removed."""
    folder = RunFolder(make_folder(run.folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if arguments.jobs > 1 else None
    log, counted = run.folder / "log.txt", run.folder / arguments.split
    anew = [] if folder.checkpoints() else ["--overwrite"]  # what was tidied up has nothing to go on from
    children.run([str(TRAIN), *run.options, *anew], log, environment)
    place = ["--save-path", str(folder.best_path), "--data-dir", str(arguments.data), "--out", str(counted)]
    children.run([str(TEST), *place, *run.evaluation], log, environment)
    epochs, best = folder.metrics(), folder.best()
    result = {
        "loss": run.name,
        "seed": run.seed,
        **scores(counted),
        "best_epoch": best["epoch"],
        "val_mae": best["val_mae"],
        "val_mse": best["val_mse"],
        "epochs": len(epochs),
        "train_seconds": sum(epoch["seconds"] for epoch in epochs),
        "loss_seconds": sum(epoch["time"]["loss"] for epoch in epochs),
        "options": run.effective,
    }
    write_json(run.folder / "result.json", result)
    remove_checkpoints(run, arguments.keep_models)
    return result


def scores(folder: Path) -> dict[str, float | None]:
    """What ``test.py`` left in ``folder``: MAE, MSE, F1, and the mean error of the pictures with fewer and with more people.

    An F1 is None where there are neither objects nor annotations.
    """
    counts = [count for count in read_counts(folder / "results.csv") if not math.isnan(count.truth)]
    mae, mse = mae_mse(counts)
    errors = [count.predicted - count.truth for count in sorted(counts, key=lambda count: count.truth)]
    middle = len(errors) // 2
    places = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["localisation"]
    f1 = {key: places[radius]["f1"] for key, radius in RADII.items()}
    halves = {
        "sparse_error": statistics.mean(errors[:middle] or errors),
        "dense_error": statistics.mean(errors[middle:]),
    }
    return {"mae": mae, "mse": mse, **f1, **halves}


def remove_checkpoints(run: Run, keep_best: bool) -> None:
    """Free what a finished run no longer needs."""
    folder = RunFolder(run.folder)
    for path in folder.checkpoints() + ([] if keep_best else [folder.best_path]):
        path.unlink(missing_ok=True)


def run_experiment(arguments: argparse.Namespace, runs: Sequence[Run], table: Callable[..., str]) -> int:
    """Do the runs that are missing, ``--jobs`` at a time; the tables are written anew whenever one ends -> the exit code.

    ``table`` writes that of the experiment: (``Results``, MAE and MSE of the mean predictor) -> its Markdown.
    """
    images = list_images(arguments.data / arguments.split)
    if not any(points_path(image).exists() for image in images):
        raise ValueError(f"{images[0].parent}: has no annotations to compare with; take --split val")
    make_folder(arguments.out)
    guesses = mae_mse(guess_counts(arguments.data, arguments.split))
    names = list(dict.fromkeys(run.name for run in runs))
    results: list[dict[str, Any]] = []

    def report() -> str:
        results.sort(key=lambda result: (names.index(result["loss"]), result["seed"]))
        if results:
            keys = [key for key in results[-1] if key != "options"]
            write_table(arguments.out, "runs", [keys, *([result.get(key, "") for key in keys] for result in results)])
        found = {name: [result for result in results if result["loss"] == name] for name in names}
        return table({name: some for name, some in found.items() if some}, guesses)

    waiting, failures = [], 0
    for run in runs:
        if result := read_result(run):
            results.append(result)
            remove_checkpoints(run, keep_best=True)  # one that was kept before is not ours to remove
        else:
            waiting.append(run)
    print(f"{len(runs)} runs, {len(results)} of them were there; {arguments.out}")
    report()
    with interrupted_by_sigterm(), Children() as children, contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(arguments.jobs)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        pending = {pool.submit(execute, run, arguments, children): run for run in waiting}
        bar = stack.enter_context(ProgressBar(total=len(runs), initial=len(results), desc="experiment", unit="run"))
        for future in as_completed(pending):
            run = pending[future]
            bar.update()
            try:
                results.append(future.result())
            except (OSError, ValueError) as error:
                failures += 1
                tqdm.write(f"error: {run.name}, seed {run.seed}: {one_line(error)}", file=sys.stderr)
                continue
            tqdm.write("{loss}, seed {seed}: MAE {mae:.2f}, MSE {mse:.2f}".format(**results[-1]))
            report()
    print(report(), end="")
    if failures:
        print(f"error: {failures} of {len(runs)} runs failed; the same command tries them again", file=sys.stderr)
    return EXIT_FAILED if failures else 0


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
    values = [result[key] for result in results if result.get(key) is not None]
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
