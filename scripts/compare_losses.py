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
import functools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from losses import LOSSES
from scripts import experiments
from scripts.experiments import FIRST_SEED, Run, spread
from utils.cli import default_workers, run_script
from utils.config import make_parser, number
from utils.evaluation import mae_mse
from utils.files import list_images, make_folder, points_path
from utils.training.train_options import default_loaders

# Options of train_gs.py that are set here.
OURS = ("--data-dir", "--root-path", "--loss", "--seed", "--save-dir", "--resume", "--overwrite")
# GST with its published kernel, whatever kernel the options give "gst".
PUBLISHED = "--loss gst --scale-ratio 1 --post-min 1 --post-max 20 --cut-off 3 --background-ratio 0.015".split()
PUBLISHED += ["--background-weight", "1"]
# Small scales and a large cut-off: the border lies 8 px or more from a head, and a cell belongs wholly to one side of it.
SHARP = [*PUBLISHED, *"--scale-ratio 0.5 --post-min 4 --cut-off 5 --background-ratio 0.1".split()]
CHOICES = {name: ["--loss", name] for name in LOSSES} | {
    "mse-adaptive": ["--loss", "mse", "--sigma", "adaptive"],
    "gst-round": [*PUBLISHED, "--post-max", "8"],  # every scale is 8 px, as in BL
    "gst-round-area": [*PUBLISHED, "--round-shapes"],  # of each point's fitted area
    "gst-published": PUBLISHED,
    "gst-2px": [*PUBLISHED, "--post-min", "4"],
    "gst-edge": [*PUBLISHED, *"--post-min 4 --cut-off 1 --background-ratio 2".split()],
    "gst-sharp": SHARP,
    "gst-sharp-10": [*SHARP, "--cut-off", "6.4"],
    "gst-sharp-half": [*SHARP, "--background-weight", "0.5"],
    "mse-4": ["--loss", "mse", "--sigma", "4"],
    "vgg": ["--loss", "gst", "--model-name", "vgg"],
    "vgg_trans": ["--loss", "gst", "--model-name", "vgg_trans"],
    "bl-trans": ["--loss", "bl", "--model-name", "vgg_trans"],
    "gst-sharp-trans": [*SHARP, "--model-name", "vgg_trans"],
}
GROUPS = {
    "all": [*LOSSES, "mse-adaptive"],
    "ladder": ["bl", "bl+", "gst-round", "gst-round-area", "gst-published", "gst-2px", "gst-sharp", "gst-edge"],
    "losses": ["gst-published", "gst-sharp", "bl", "bl+", "dm-count", "mse-4", "bl-trans", "gst-sharp-trans"],
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


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Run]]:
    """The options and the runs that they ask for, seed by seed: a table of all is there early. Wrong ones end the script."""
    parser = make_parser("Compare losses; options that are not listed go to train_gs.py, the same for every run.")
    parser.usage = "%(prog)s DATA [options] [options of train_gs.py]"
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="prepared data set, with fitted Gaussians for gst")
    names = f"groups ({', '.join(GROUPS)}) or some of {', '.join(CHOICES)}"
    add("--losses", "--rungs", nargs="+", choices=[*GROUPS, *CHOICES], default=["all"], metavar="L", help=names)
    add("--recipes", action="store_true", help="each loss with its own configs/<loss>.yml; mse with gst's")
    add(
        "--published", choices=PUBLISHED_NUMBERS, help="data set whose published numbers stand beside the measured ones"
    )
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
    dataset = experiments.train_options(common).dataset
    runs = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name in dict.fromkeys(name for asked in arguments.losses for name in GROUPS.get(asked, [asked])):
            own = experiments.recipe(name.rstrip("+"), dataset) if arguments.recipes else []
            folder = arguments.out / f"{name}_seed{seed}"
            runs.append(experiments.plan(name, seed, folder, arguments.split, [*common, *own, *CHOICES[name]]))
    return arguments, runs


def report(runs: Sequence[Run], arguments: argparse.Namespace, images: int, guesses: tuple[float, float]) -> str:
    """Write the tables of the runs that are finished -> the Markdown of that of the losses.

    ``images``: of an epoch; ``guesses``: MAE and MSE of the mean predictor.
    """
    found: dict[str, list[dict[str, Any]]] = {run.name: [] for run in runs}
    for run in runs:
        if result := experiments.read_result(run):
            found[run.name].append(result)
    results = [result for some in found.values() for result in some]
    if results:
        keys = [key for key in results[0] if key != "options"]
        lines = ([result[key] for key in keys] for result in results)
        experiments.write_table(arguments.out, "runs", [keys, *lines])
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
    return experiments.write_table(arguments.out, "table", rows, REMARK + (PROVENANCE if published else ""))


def main() -> int:
    """Do the runs that are missing, and report whenever one ends."""
    arguments, runs = parse()
    images = list_images(arguments.data / arguments.split)
    if not any(points_path(image).exists() for image in images):
        raise ValueError(f"{images[0].parent}: has no annotations to compare with; take --split val")
    guesses = mae_mse(experiments.guess_counts(arguments.data, arguments.split))
    epoch = len(list_images(arguments.data / "train"))
    write_tables = functools.partial(report, runs, arguments, epoch, guesses)
    missing = [run for run in runs if not experiments.read_result(run)]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them were there; {make_folder(arguments.out)}", flush=True)
    failures = experiments.run_all(missing, arguments.jobs, write_tables)
    print(write_tables(), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
