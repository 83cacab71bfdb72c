"""Train the same network with every loss, several seeds each, and compare accuracy and cost.

    python scripts/compare_losses.py DATA --epochs 100 --lr 1e-5 --crop-size 256 --jobs 2

Options that are not listed by --help go to train_gs.py, the same for every run; only the loss and the seed differ. DATA is a
prepared data set with fitted Gaussians. Every run has its folder in --out; a finished one is kept, an unfinished one goes on.
table.md and table.csv (a row a loss) and runs.csv (a row a run) are written anew whenever a run ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from losses import LOSSES
from scripts import experiments
from scripts.experiments import ROOT, Results, Run
from utils.cli import run_script
from utils.files import list_images

CHOICES = {name: ["--loss", name] for name in LOSSES} | {"mse-adaptive": ["--loss", "mse", "--sigma", "adaptive"]}
# GST with its published kernel, whatever kernel the options give "gst"; only where --losses names it.
PUBLISHED = "--scale-ratio 1 --post-min 1 --post-max 20 --cut-off 3 --background-ratio 0.015".split()
ON_REQUEST = {"gst-published": ["--loss", "gst", *PUBLISHED]}
RECIPES = {"bl": "bl", "bl+": "bl", "dm-count": "dm-count", "gloss": "gloss"}  # loss -> name of its recipe's files
REMARK = (
    "Mean ± standard deviation over the seeds. MSE: root of the mean squared error. Training: without validation and "
    "checkpoints. In the loss: kernel or plan and value; its gradient is part of the backward pass."
)


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Run]]:
    """The options, and the runs that they ask for; wrong ones end the script."""
    what = "Compare losses: the same network, options and seeds"
    parser = experiments.experiment_parser(what, None, "test", Path("runs/comparison"))
    shown = f"{', '.join(CHOICES)} (default: these), {', '.join(ON_REQUEST)}"
    known = CHOICES | ON_REQUEST
    parser.add_argument("--losses", nargs="+", choices=known, default=list(CHOICES), metavar="L", help=shown)
    recipes = "each loss with its own configs/<loss>_<dataset>.yml; mse with gst's"
    parser.add_argument("--recipes", action="store_true", help=recipes)
    arguments, passed = parser.parse_known_args(argv)
    experiments.refuse(parser, passed)
    chosen = {name: known[name] for name in arguments.losses}
    if arguments.recipes:
        experiments.refuse(parser, passed, ["--config"])
        dataset = experiments.train_options(["--data-dir", str(arguments.data), *passed]).dataset
        for name in chosen.keys() & RECIPES:
            recipe = ROOT / "configs" / f"{RECIPES[name]}_{dataset}.yml"
            if not recipe.is_file():
                raise ValueError(f"{recipe}: no such recipe; leave {name} out with --losses, or drop --recipes")
            chosen[name] = ["--config", str(recipe), *chosen[name]]
    return arguments, experiments.plan(arguments, passed, chosen)


def main() -> int:
    """Do the runs that are missing, and report."""
    arguments, runs = parse()
    images = len(list_images(arguments.data / "train"))

    def table(results: Results, guesses: tuple[float, float]) -> str:
        times = ("training, s", "in the loss, s", "in the loss, ms a crop")
        rows: list[Sequence[object]] = [("loss", "seeds", "MAE", "MSE", "F1 at 8 px", *times)]
        for name, found in results.items():
            crops = images * found[0]["epochs"]
            per_crop = statistics.mean(result["loss_seconds"] for result in found) / crops * 1000
            mae, mse, training, loss = (
                experiments.spread(found, key) for key in ("mae", "mse", "train_seconds", "loss_seconds")
            )
            rows.append(
                (name, len(found), mae, mse, experiments.spread(found, "f1", 2), training, loss, f"{per_crop:.1f}")
            )
        errors = (f"{error:.1f}" for error in guesses)
        rows.append(("mean density of the training images", "", *errors, "", "", "", ""))
        return experiments.write_table(arguments.out, "table", rows, REMARK)

    return experiments.run_experiment(arguments, runs, table)


if __name__ == "__main__":
    run_script(main)
