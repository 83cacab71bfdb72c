"""Train the same network with every loss, several seeds each, and compare accuracy and cost.

    python scripts/compare_losses.py DATA --epochs 100 --lr 1e-5 --crop-size 256 --jobs 2
    python scripts/compare_losses.py DATA --losses ladder --split val --jobs 4 --minutes 3 --batch-size 8 --device 0

Options that are not listed by --help go to train_gs.py, the same for every run; only the loss and the seed differ. DATA is a
prepared data set with fitted Gaussians. The ladder climbs from Bayesian loss to GST rung by rung. Every run has its folder in
--out; a finished one is kept, an unfinished one goes on. table.md and table.csv (a row a loss) and runs.csv (a row a run) are
written anew whenever a run ends.
"""

from __future__ import annotations

import argparse
import csv
import functools
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.cli import default_workers, interrupted_by_sigterm, one_line, run_script
from utils.config import make_parser, number
from utils.evaluation import Result, mae_mse
from utils.evaluation.results import read_counts
from utils.files import atomic_write, list_images, make_folder, points_path, read_points, write_json
from utils.images import image_size
from utils.training.run_folder import MACHINE_OPTIONS, RunFolder, run_options
from utils.training.train_options import default_loaders, parse_train_options

FIRST_SEED = 4073
WAIT = 0.1  # seconds from one look at what runs to the next
# Options of train_gs.py that are set here.
OURS = ("--data-dir", "--root-path", "--loss", "--seed", "--save-dir", "--resume", "--overwrite")
PLAIN = "--background-weight 1 --count-weight 0".split()  # the loss as published
# GST with its published kernel, whatever kernel the options give "gst".
PUBLISHED = "--loss gst --scale-ratio 1 --post-min 1 --post-max 20 --cut-off 3 --background-ratio .015".split() + PLAIN
# Small scales and a large cut-off: the border lies 8 px or more from a head, or 6 px (configs/sha_near.yml), and is steep.
SHARP = [*PUBLISHED, *"--scale-ratio 0.5 --post-min 4 --cut-off 5 --background-ratio 0.1".split()]
NEAR = PUBLISHED + "--scale-ratio 0.3 --post-min 6 --cut-off 6 --background-ratio 0.1 --background-weight 0.55".split()
CHOICES = {name: ["--loss", name] for name in LOSSES} | {
    "bl": ["--loss", "bl", *PLAIN],
    "bl+": ["--loss", "bl+", *PLAIN],
    "mse-adaptive": ["--loss", "mse", "--sigma", "adaptive"],
    "gst-round": [*PUBLISHED, "--post-max", "8"],  # every scale is 8 px, as in BL
    "gst-round-area": [*PUBLISHED, "--round-shapes"],  # of each point's fitted area
    "gst-published": PUBLISHED,
    "gst-2px": [*PUBLISHED, "--post-min", "4"],
    "gst-edge": [*PUBLISHED, *"--post-min 4 --cut-off 1 --background-ratio 2".split()],
    "gst-sharp": SHARP,
    "gst-sharp-10": [*SHARP, "--cut-off", "6.4"],
    "gst-sharp-half": [*SHARP, "--background-weight", "0.5"],
    "gst-near": NEAR,
    "gst-near-count": [*NEAR, "--count-weight", "0.15"],  # or VGG19 begins by predicting nothing
    "mse-4": ["--loss", "mse", "--sigma", "4"],
    "vgg": ["--loss", "gst", "--model-name", "vgg"],
    "vgg_trans": ["--loss", "gst", "--model-name", "vgg_trans"],
    "bl-trans": ["--loss", "bl", *PLAIN, "--model-name", "vgg_trans"],
    "gst-near-trans": [*NEAR, "--model-name", "vgg_trans"],
}
GROUPS = {
    "all": [*LOSSES, "mse-adaptive"],
    "ladder": "bl bl+ gst-round gst-round-area gst-published gst-2px gst-sharp gst-near gst-edge".split(),
    "losses": "gst-published gst-near gst-near-count bl bl+ dm-count mse-4 bl-trans gst-near-trans".split(),
}
REMARK = (
    "Mean ± standard deviation over the seeds. MSE: root of the mean squared error. Error: predicted minus true count, the mean "
    "over the half of the pictures with fewer people and over that with more; below zero people are missed, above invented. "
    "Training: without validation and checkpoints. In the loss: kernel or plan and value; its gradient is part of the backward "
    "pass."
)
# MAE and MSE on test.
PUBLISHED_NUMBERS = {
    "sha": {"bl": "62.8 / 101.8", "dm-count": "59.7 / 95.7", "gloss": "61.3 / 95.4"},
    "shb": {"bl": "7.7 / 12.7", "dm-count": "7.4 / 11.8", "gloss": "7.3 / 11.7"},
    "jhu": {"bl": "75.0 / 299.9", "dm-count": "61.6 / 256.1", "gloss": "59.5 / 259.5", "gst": "53.9 / 225.4"},
    "qnrf": {"bl": "88.7 / 154.8", "dm-count": "85.6 / 148.3", "gloss": "84.3 / 147.5", "gst": "80.7 / 131.1"},
    "nwpu": {"bl": "105.4 / 454.2", "dm-count": "88.4 / 388.6", "gloss": "79.3 / 346.1", "gst": "74.4 / 306.2"},
}
PROVENANCE = (
    " Published: of the losses' papers; GST's row is second-hand, from a later paper's comparison table, which does not name the "
    "backbone: both networks stand beside it. The numbers are of test; the test annotations of NWPU-Crowd are not public, and val "
    "must not be compared with them: test.py --split test --nwpu-submission FILE writes what its server scores."
)
# Column -> key of a result, decimals, sign.
COLUMNS = {
    "MAE": ("mae", 1, ""),
    "MSE": ("mse", 1, ""),
    "F1 at 4 px": ("f1_4px", 2, ""),
    "F1 at 8 px": ("f1", 2, ""),
    "error, sparse": ("sparse_error", 1, "+"),
    "error, dense": ("dense_error", 1, "+"),
    "epochs": ("epochs", 0, ""),
    "training, s": ("train_seconds", 1, ""),
    "in the loss, s": ("loss_seconds", 1, ""),
}


class Run(NamedTuple):
    """One training and the evaluation of its best model."""

    name: str
    seed: int
    folder: Path
    split: str  # that is counted in the end
    commands: list[list[str]]  # scripts of this project with their options
    effective: dict[str, Any]  # what the result depends on


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Run]]:
    """The options and the runs that they ask for, seed by seed: a table of all is there early. Wrong ones end the script."""
    parser = make_parser("Compare losses; options that are not listed go to train_gs.py, the same for every run.")
    parser.usage = "%(prog)s DATA [options] [options of train_gs.py]"
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="prepared data set, with fitted Gaussians for gst")
    names = f"groups ({', '.join(GROUPS)}) or some of {', '.join(CHOICES)}"
    add("--losses", "--rungs", nargs="+", choices=[*GROUPS, *CHOICES], default=["all"], metavar="L", help=names)
    add("--recipes", action="store_true", help="each loss with its own configs/<loss>.yml; mse with gst's")
    add("--published", choices=PUBLISHED_NUMBERS, help="data set whose published MAE and MSE are shown as well")
    add("--seeds", type=number(int, 1), default=3, metavar="N", help=f"runs of each, from seed {FIRST_SEED} on")
    jobs = "trainings at once, with one thread each if several"
    add("--jobs", type=number(int, 1), default=1, metavar="N", help=jobs)
    add("--split", choices=("test", "val"), default="test", help="split that is counted in the end")
    add("--out", type=Path, default=Path("runs/comparison"), metavar="P", help="folder of runs and tables")
    arguments, passed = parser.parse_known_args(argv)
    for option in [*OURS, *(["--config"] if arguments.recipes else [])]:
        if any(word.partition("=")[0] == option for word in passed):
            parser.error(f"{option}: this script sets it for each run; see --help")
    common = ["--data-dir", str(arguments.data), *passed]
    if arguments.jobs > 1:
        common = ["--num-workers", str(default_loaders(default_workers() // arguments.jobs)), *common]
    dataset = train_options(common).dataset
    runs = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name in dict.fromkeys(name for asked in arguments.losses for name in GROUPS.get(asked, [asked])):
            own = recipe(name.rstrip("+"), dataset) if arguments.recipes else []
            folder = arguments.out / f"{name}_seed{seed}"
            runs.append(plan(name, seed, folder, arguments.split, [*common, *own, *CHOICES[name]]))
    return arguments, runs


def recipe(loss: str, dataset: str) -> list[str]:
    """The option that takes a loss's published recipe, that of the data set where there is one; empty for gst's, the default."""
    paths = (ROOT / "configs" / f"{name}.yml" for name in (f"{loss}_{dataset}", loss))
    return next((["--config", str(path)] for path in paths if path.is_file()), [])


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


def report(runs: Sequence[Run], arguments: argparse.Namespace, images: int, guesses: tuple[float, float]) -> str:
    """Write the tables of the runs that are finished -> the Markdown of that of the losses.

    ``images``: of an epoch; ``guesses``: MAE and MSE of the mean predictor.
    """
    found: dict[str, list[dict[str, Any]]] = {run.name: [] for run in runs}
    for run in runs:
        if result := read_result(run):
            found[run.name].append(result)
    results = [result for some in found.values() for result in some]
    if results:
        keys = [key for key in results[0] if key != "options"]
        lines = ([result[key] for key in keys] for result in results)
        write_table(arguments.out, "runs", [keys, *lines])
    published = PUBLISHED_NUMBERS.get(arguments.published, {})
    rows: list[list[object]] = [["loss", "seeds", *COLUMNS, "in the loss, ms a crop"]]
    rows[0] += ["published MAE / MSE"] if published else []
    for name, some in found.items():
        if some:
            per_crop = statistics.mean(result["loss_seconds"] / result["epochs"] for result in some) / images * 1000
            figures = (spread(some, *column) for column in COLUMNS.values())
            known = [published.get(some[0]["options"]["loss"], "none")] if published else []
            rows.append([name, len(some), *figures, f"{per_crop:.1f}", *known])
    guessed = (f"{error:.1f}" for error in guesses)
    rows.append(["mean density of the training images", "", *guessed, *[""] * (len(rows[0]) - 4)])
    return write_table(arguments.out, "table", rows, REMARK + (PROVENANCE if published else ""))


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


def main() -> int:
    """Do the runs that are missing, and report whenever one ends."""
    arguments, runs = parse()
    images = list_images(arguments.data / arguments.split)
    if not any(points_path(image).exists() for image in images):
        raise ValueError(f"{images[0].parent}: has no annotations to compare with; take --split val")
    guesses = mae_mse(guess_counts(arguments.data, arguments.split))
    epoch = len(list_images(arguments.data / "train"))
    write_tables = functools.partial(report, runs, arguments, epoch, guesses)
    missing = [run for run in runs if not read_result(run)]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them were there; {make_folder(arguments.out)}", flush=True)
    failures = run_all(missing, arguments.jobs, write_tables)
    print(write_tables(), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
