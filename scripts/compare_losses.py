"""Train the same network with every loss, several seeds each, and compare accuracy and cost.

    python scripts/compare_losses.py DATA --epochs 100 --lr 1e-5 --crop-size 256 --jobs 2
    python scripts/compare_losses.py --crowds DATA --jobs 4 --minutes 3 --batch-size 8 --precision bf16-mixed --device 0

Options that are not listed by --help go to train_gs.py, the same for every run; only the loss and the seed differ. DATA is a
prepared data set with fitted Gaussians; where a loss wants others, its images are linked into --out and fitted there. Every run
has its folder in --out; a finished one is kept, an unfinished one goes on. table.md and table.csv (a row a loss; crowds.md and
crowds.csv with --crowds, which climbs from Bayesian loss to GST rung by rung) and runs.csv (a row a run) are written anew
whenever a run ends.
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
from scripts.experiments import ROOT, Children, Results
from utils.cli import interrupted_by_sigterm, run_script
from utils.config import make_parser, number
from utils.files import list_images, make_folder

# Options of train_gs.py that are set here.
OURS = ("--data-dir", "--root-path", "--loss", "--seed", "--save-dir", "--resume", "--overwrite")
# GST with its published kernel, whatever kernel the options give "gst".
PUBLISHED = "--loss gst --scale-ratio 1 --post-min 1 --post-max 20 --cut-off 3 --background-ratio 0.015".split()
PUBLISHED += ["--background-weight", "1"]
EDGE = [*PUBLISHED, *"--post-min 4 --cut-off 1 --background-ratio 2".split()]
# Small scales and a large cut-off: the border lies 8 px or more from a head, and a cell belongs wholly to one side of it.
SHARP = [*PUBLISHED, *"--scale-ratio 0.5 --post-min 4 --cut-off 5 --background-ratio 0.1".split()]
CHOICES = {name: ["--loss", name] for name in LOSSES} | {
    "mse-adaptive": ["--loss", "mse", "--sigma", "adaptive"],
    "gst-round": [*PUBLISHED, "--post-max", "8"],  # every scale is 8 px, as in BL
    "gst-round-area": [*PUBLISHED, "--round-shapes"],  # of each point's fitted area
    "gst-published": PUBLISHED,
    "gst-tolerance-0": PUBLISHED,
    "gst-tolerance-1e-3": PUBLISHED,
    "gst-2px": [*PUBLISHED, "--post-min", "4"],
    "gst-edge": EDGE,
    "gst-sharp": SHARP,
    "gst-sharp-10": [*SHARP, "--cut-off", "6.4"],
    "gst-sharp-half": [*SHARP, "--background-weight", "0.5"],
    "mse-4": ["--loss", "mse", "--sigma", "4"],
    "bl-trans": ["--loss", "bl", "--model-name", "vgg_trans"],
    "gst-sharp-trans": [*SHARP, "--model-name", "vgg_trans"],
}
FITS = {"gst-tolerance-0": ["--tolerance", "0"], "gst-tolerance-1e-3": ["--tolerance", "1e-3"]}
GROUPS = {
    "all": [*LOSSES, "mse-adaptive"],
    "ladder": ["bl", "bl+", "gst-round", "gst-round-area", "gst-published", *FITS, "gst-2px", "gst-sharp", "gst-edge"],
    "losses": ["gst-published", "gst-sharp", "bl", "bl+", "dm-count", "mse-4", "bl-trans", "gst-sharp-trans"],
}
REMARK = (
    "Mean ± standard deviation over the seeds. MSE: root of the mean squared error. Error: predicted minus true count, the mean "
    "over the half of the pictures with fewer people and over that with more; below zero people are missed, above invented. "
    "Training: without validation and checkpoints. In the loss: kernel or plan and value; its gradient is part of the backward "
    "pass."
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


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str], dict[str, list[str]]]:
    """Our options, those that go on to ``train_gs.py``, and the losses that are asked for; wrong ones end the script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser("Compare losses; options that are not listed go to train_gs.py, the same for every run.")
    parser.usage = "%(prog)s DATA [options] [options of train_gs.py]"
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="prepared data set, with fitted Gaussians for gst")
    add("--crowds", action="store_true", help="other defaults: from BL to GST on real crowds (ladder, val)")
    names = f"groups ({', '.join(GROUPS)}) or some of {', '.join(CHOICES)}"
    choices = [*GROUPS, *CHOICES]
    add("--losses", "--rungs", nargs="+", choices=choices, default=["all"], metavar="L", help=names)
    add("--recipes", action="store_true", help="each loss with its own configs/<loss>.yml; mse with gst's")
    seeds = f"runs of each, from seed {experiments.FIRST_SEED} on"
    add("--seeds", type=number(int, 1), default=3, metavar="N", help=seeds)
    jobs = "trainings at once, with one thread each if several"
    add("--jobs", type=number(int, 1), default=1, metavar="N", help=jobs)
    add("--split", choices=("test", "val"), default="test", help="split that is counted in the end")
    add("--out", type=Path, default=Path("runs/comparison"), metavar="P", help="folder of runs and tables")
    add("--keep-models", action="store_true", help="keep best_model.pth of every run (86 MB each with vgg)")
    if "--crowds" in argv:
        parser.set_defaults(losses=["ladder"], split="val", out=Path("runs/crowds"))
    arguments, passed = parser.parse_known_args(argv)
    for option in [*OURS, *(["--config"] if arguments.recipes else [])]:
        if any(word.partition("=")[0] == option for word in passed):
            parser.error(f"{option}: this script sets it for each run; see --help")
    dataset = experiments.train_options(["--data-dir", str(arguments.data), *passed]).dataset
    names = [name for asked in arguments.losses for name in GROUPS.get(asked, [asked])]
    chosen = {name: CHOICES[name] for name in names}
    for name in chosen.keys() & FITS:
        chosen[name] = [*chosen[name], "--data-dir", str(arguments.out / name)]
    if arguments.recipes:
        for name in chosen:
            chosen[name] = [*experiments.recipe(name.rstrip("+"), dataset), *chosen[name]]
    return arguments, passed, chosen


def refit(data: Path, folder: Path, options: Sequence[str]) -> None:
    """Fill ``folder`` with links to what ``data`` has prepared, and with Gaussians of its own; what is done is skipped."""
    for path in (*data.glob("*.json"), *data.glob("train/*.*"), *data.glob("val/*.*")):
        link = make_folder((folder / path.relative_to(data)).parent) / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    with interrupted_by_sigterm(), Children() as children:
        for script in (["2dgs_counting_1gs_gsplat.py", *options], ["GS2D/process_gaussians.py"]):
            children.run([str(ROOT / script[0]), *script[1:], "--root-path", str(folder)])


def main() -> int:
    """Fit what a loss wants fitted, do the runs that are missing, and report."""
    arguments, passed, chosen = parse()
    for name in chosen.keys() & FITS:
        refit(arguments.data, arguments.out / name, FITS[name])
    runs = experiments.plan(arguments, passed, chosen)
    images = len(list_images(arguments.data / "train"))
    first, table_name = ("rung", "crowds") if arguments.crowds else ("loss", "table")

    def table(results: Results, guesses: tuple[float, float]) -> str:
        rows: list[Sequence[object]] = [(first, "seeds", *COLUMNS, "in the loss, ms a crop")]
        for name, found in results.items():
            per_crop = statistics.mean(result["loss_seconds"] / result["epochs"] for result in found) / images * 1000
            figures = (experiments.spread(found, *column) for column in COLUMNS.values())
            rows.append((name, len(found), *figures, f"{per_crop:.1f}"))
        errors = (f"{error:.1f}" for error in guesses)
        rows.append(("mean density of the training images", "", *errors, *[""] * (len(rows[0]) - 4)))
        return experiments.write_table(arguments.out, table_name, rows, REMARK)

    return experiments.run_experiment(arguments, runs, table)


if __name__ == "__main__":
    run_script(main)
