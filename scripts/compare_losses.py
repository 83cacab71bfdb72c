"""Train the same network with every loss, several seeds each, and compare accuracy and cost.

    python scripts/compare_losses.py DATA --epochs 100 --lr 1e-5 --crop-size 256 --jobs 2

Options that are not listed by --help go to train_gs.py, the same for every run; only the loss and the seed differ. DATA is a
prepared data set with fitted Gaussians. Every run has its folder in --out; a finished one is kept, an unfinished one goes on.
table.md and table.csv (a row a loss) and runs.csv (a row a run) are written anew whenever a run ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tqdm import tqdm

from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from scripts.experiments import Children, ended_with_us, guess_counts, write_table
from utils.cli import EXIT_FAILED, ProgressBar, default_workers, one_line, run_script
from utils.config import make_parser, number
from utils.evaluation import mae_mse
from utils.evaluation.results import read_counts
from utils.files import list_images, make_folder, points_path, write_json
from utils.training.run_folder import MACHINE_OPTIONS, RunFolder, run_options
from utils.training.train_options import default_loaders, parse_train_options

TRAIN, TEST = ROOT / "train_gs.py", ROOT / "test.py"
FIRST_SEED = 4073
CHOICES = {name: ("--loss", name) for name in LOSSES} | {"mse-adaptive": ("--loss", "mse", "--sigma", "adaptive")}
# GST with its published kernel, whatever kernel the options give "gst"; only where --losses names it.
PUBLISHED = "--scale-ratio 1 --post-min 1 --post-max 20 --cut-off 3 --background-ratio 0.015".split()
ON_REQUEST = {"gst-published": ("--loss", "gst", *PUBLISHED)}
F1_RADIUS = 8  # pixels
RECIPES = {"bl": "bl", "bl+": "bl", "dm-count": "dm-count", "gloss": "gloss"}  # loss -> name of its recipe's files
# Options of train_gs.py that are set here.
OURS = ("--data-dir", "--root-path", "--loss", "--seed", "--save-dir", "--resume", "--overwrite")
POLL = 2  # seconds between looks at how far the runs are


class Run(NamedTuple):
    """One training: its place, the options of ``train_gs.py``, and what these come to."""

    label: str
    seed: int
    folder: Path
    options: list[str]
    effective: dict[str, Any]  # what the result depends on
    evaluation: list[str]  # options of test.py

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that go on to ``train_gs.py``."""
    parser = make_parser("Compare losses: the same network, options and seeds; other options go to train_gs.py.")
    parser.usage = "%(prog)s DATA [options] [options of train_gs.py]"
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="prepared data set, with fitted Gaussians for gst")
    names = (*CHOICES, *ON_REQUEST)
    shown = f"{', '.join(CHOICES)} (default: these), {', '.join(ON_REQUEST)}"
    add("--losses", nargs="+", choices=names, default=list(CHOICES), metavar="L", help=shown)
    add("--seeds", type=number(int, 1), default=3, metavar="N", help=f"runs of each loss, from seed {FIRST_SEED} on")
    add("--recipes", action="store_true", help="each loss with its own configs/<loss>_<dataset>.yml; mse with gst's")
    add(
        "--jobs", type=number(int, 1), default=1, metavar="N", help="trainings at once, with one thread each if several"
    )
    add("--split", choices=("test", "val"), default="test", help="split that is counted in the end")
    add("--out", type=Path, default=Path("runs/comparison"), metavar="P", help="folder of runs and tables")
    add("--keep-models", action="store_true", help="keep best_model.pth of every run (86 MB each with vgg)")
    arguments, passed = parser.parse_known_args(argv)
    for option in (*OURS, *(["--config"] if arguments.recipes else [])):
        if any(word.partition("=")[0] == option for word in passed):
            parser.error(f"{option}: this script sets it for each run; see --losses, --seeds and --recipes")
    return arguments, passed


def plan(arguments: argparse.Namespace, passed: Sequence[str]) -> list[Run]:
    """All runs, seed by seed, so that a table of all losses is there early. Wrong options end the script here."""
    runs, data = [], ["--data-dir", str(arguments.data)]

    def parsed(options: Sequence[str]) -> argparse.Namespace:
        return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, options)

    if arguments.jobs > 1:  # trainings on a GPU share the processors; on CPUs each loads for itself
        on_gpu = torch.cuda.is_available() and parsed([*data, *passed]).device != "cpu"
        data += ["--num-workers", str(default_loaders(default_workers() // arguments.jobs) if on_gpu else 0)]
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for label in dict.fromkeys(arguments.losses):
            options = [*data, *passed, *(CHOICES | ON_REQUEST)[label], "--seed", str(seed)]
            if arguments.recipes and label in RECIPES:
                recipe = ROOT / "configs" / f"{RECIPES[label]}_{parsed(options).dataset}.yml"
                if not recipe.is_file():
                    raise ValueError(f"{recipe}: no such recipe; leave {label} out with --losses, or drop --recipes")
                options = ["--config", str(recipe), *options]
            folder = arguments.out / f"{label}_seed{seed}"
            options += ["--save-dir", str(folder)]
            said = parsed(options)
            effective = {key: value for key, value in run_options(said).items() if key not in MACHINE_OPTIONS}
            effective |= {"data": str(arguments.data.resolve()), "split": arguments.split}
            device = said.device.partition(",")[0]
            evaluation = ["--split", arguments.split, "--device", device, "--window", str(said.window)]
            runs.append(Run(label, seed, folder, options, effective, evaluation))
    return runs


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
    children.run([sys.executable, str(TRAIN), *run.options, *anew], log, environment)
    test = [TEST, "--save-path", folder.best_path, "--data-dir", arguments.data, "--out", counted]
    children.run([sys.executable, *map(str, test), *run.evaluation], log, environment)
    epochs, best = folder.metrics(), folder.best()
    mae, mse = mae_mse(read_counts(counted / "results.csv"))
    localised = json.loads((counted / "summary.json").read_text(encoding="utf-8"))["localisation"]
    result = {
        "loss": run.label,
        "seed": run.seed,
        "mae": mae,
        "mse": mse,
        "f1": localised[str(F1_RADIUS)]["f1"],  # None where there are neither objects nor annotations
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


def remove_checkpoints(run: Run, keep_best: bool) -> None:
    """Free what a finished run no longer needs."""
    folder = RunFolder(run.folder)
    for path in folder.checkpoints() + ([] if keep_best else [folder.best_path]):
        path.unlink(missing_ok=True)


def report(arguments: argparse.Namespace, results: Sequence[dict[str, Any]], guesses: tuple[float, float]) -> str:
    """Write the tables; -> that of the losses as Markdown."""
    images = len(list_images(arguments.data / "train"))
    times = ("training, s", "in the loss, s", "in the loss, ms a crop")
    rows: list[Sequence[object]] = [("loss", "seeds", "MAE", "MSE", f"F1 at {F1_RADIUS} px", *times)]
    for label in dict.fromkeys(arguments.losses):
        found = [result for result in results if result["loss"] == label]
        if found:
            crops = images * found[0]["epochs"]
            per_crop = statistics.mean(result["loss_seconds"] for result in found) / crops * 1000
            mae, mse, *times = (
                spread([result[key] for result in found]) for key in ("mae", "mse", "train_seconds", "loss_seconds")
            )
            f1 = [result["f1"] for result in found if result.get("f1") is not None]  # absent in results of before
            rows.append((label, len(found), mae, mse, spread(f1, 2) if f1 else "", *times, f"{per_crop:.1f}"))
    rows.append(("mean density of the training images", "", *(f"{error:.1f}" for error in guesses), "", "", "", ""))
    keys = [key for key in (results[0] if results else {}) if key != "options"]
    if results:
        runs = sorted(results, key=lambda result: (arguments.losses.index(result["loss"]), result["seed"]))
        write_table(arguments.out, "runs", [keys, *([result[key] for key in keys] for result in runs)])
    remark = (
        "Mean ± standard deviation over the seeds. MSE: root of the mean squared error. Training: without validation and "
        "checkpoints. In the loss: kernel or plan and value; its gradient is part of the backward pass."
    )
    return write_table(arguments.out, "table", rows, remark)


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """Mean ± standard deviation (n - 1)."""
    mean = f"{statistics.mean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def main() -> int:
    """Do what is missing, and report."""
    arguments, passed = parse()
    runs = plan(arguments, passed)
    images = list_images(arguments.data / arguments.split)
    if not any(points_path(image).exists() for image in images):
        raise ValueError(f"{images[0].parent}: has no annotations to compare with; take --split val")
    make_folder(arguments.out)
    guesses = mae_mse(guess_counts(arguments.data, arguments.split))
    results, waiting, failures = [], [], []
    for run in runs:
        result = read_result(run)
        if result:
            results.append(result)
            remove_checkpoints(run, keep_best=True)  # one that was kept before is not ours to remove
        else:
            waiting.append(run)
    print(f"{len(runs)} runs, {len(results)} of them were there; {arguments.out}")
    report(arguments, results, guesses)

    total = sum(run.effective["epochs"] for run in waiting)
    with ended_with_us() as children, contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(arguments.jobs)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        pending = {pool.submit(execute, run, arguments, children): run for run in waiting}
        before = sum(len(RunFolder(run.folder).metrics()) for run in waiting)
        bar = stack.enter_context(ProgressBar(total=total, initial=before, desc="compare", unit="epoch"))
        while pending:
            for future in wait(pending, timeout=POLL, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                try:
                    results.append(future.result())
                except (OSError, ValueError) as error:
                    failures.append(f"{run.name}: {one_line(error)}")
                    tqdm.write(f"error: {failures[-1]}", file=sys.stderr)
                    continue
                tqdm.write("{loss}, seed {seed}: MAE {mae:.2f}, MSE {mse:.2f}".format(**results[-1]))
                report(arguments, results, guesses)
            bar.update(sum(len(RunFolder(run.folder).metrics()) for run in waiting) - bar.n)
    print(report(arguments, results, guesses), end="")
    if failures:
        print(f"error: {len(failures)} of {len(runs)} runs failed; the same command tries them again", file=sys.stderr)
    return EXIT_FAILED if failures else 0


if __name__ == "__main__":
    run_script(main)
