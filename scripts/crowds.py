"""Real crowds: from Bayesian loss to GST rung by rung, and GST beside the other losses, several seeds each.

    python scripts/crowds.py DATA --jobs 4 --minutes 3 --batch-size 8 --precision bf16-mixed --device 0
    python scripts/crowds.py DATA --rungs losses --epochs 100

Options that are not listed by --help go to train_gs.py, the same for every run. DATA is a prepared data set with fitted
Gaussians; where a rung wants others, its images are linked into --out and fitted there. Folders and tables are those of
compare_losses.py; crowds.md and crowds.csv have the errors with their sign in sparse and in dense pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import experiments
from scripts.compare_losses import PUBLISHED
from scripts.experiments import ROOT, Results
from utils.cli import run_script
from utils.files import make_folder

EDGE = ["--loss", "gst", *PUBLISHED, *"--post-min 4 --cut-off 1 --background-ratio 2".split()]
RUNGS = {
    "bl": ["--loss", "bl"],
    "bl+": ["--loss", "bl+"],
    "gst-round": ["--loss", "gst", *PUBLISHED, "--post-max", "8"],  # every scale is 8 px, as in BL
    "gst-round-area": ["--loss", "gst", *PUBLISHED, "--round-shapes"],  # of each point's fitted area
    "gst-published": ["--loss", "gst", *PUBLISHED],
    "gst-tolerance-0": ["--loss", "gst", *PUBLISHED],
    "gst-tolerance-1e-3": ["--loss", "gst", *PUBLISHED],
    "gst-2px": ["--loss", "gst", *PUBLISHED, "--post-min", "4"],
    "gst-edge": EDGE,
    "dm-count": ["--loss", "dm-count"],
    "mse-4": ["--loss", "mse", "--sigma", "4"],
    "bl-trans": ["--loss", "bl", "--model-name", "vgg_trans"],
    "gst-edge-trans": [*EDGE, "--model-name", "vgg_trans"],
}
FITS = {"gst-tolerance-0": ["--tolerance", "0"], "gst-tolerance-1e-3": ["--tolerance", "1e-3"]}
LADDER = ["bl", "bl+", "gst-round", "gst-round-area", "gst-published", *FITS, "gst-2px", "gst-edge"]
LOSSES = ["gst-published", "gst-edge", "bl", "bl+", "dm-count", "mse-4", "bl-trans", "gst-edge-trans"]
REMARK = (
    "Mean ± standard deviation over the seeds. Error: predicted minus true count, the mean over the half of the pictures with "
    "fewer people and over that with more; below zero people are missed, above invented."
)


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str], dict[str, list[str]]]:
    """Our options, those that go on to ``train_gs.py``, and the rungs that are asked for; wrong ones end the script."""
    what = "Climb from Bayesian loss to GST, or compare losses, on real crowds"
    parser = experiments.experiment_parser(what, Path("data/SHA-Train-Val-Test"), "val", Path("runs/crowds"))
    groups = {"ladder": LADDER, "losses": LOSSES}
    shown = f"ladder (default), losses, or some of {', '.join(RUNGS)}"
    parser.add_argument("--rungs", nargs="+", choices=[*groups, *RUNGS], default=["ladder"], metavar="R", help=shown)
    arguments, passed = parser.parse_known_args(argv)
    experiments.refuse(parser, passed)
    experiments.train_options(["--data-dir", str(arguments.data), *passed])
    names = [name for asked in arguments.rungs for name in groups.get(asked, [asked])]
    places = {name: ["--data-dir", str(arguments.out / name)] for name in FITS}
    return arguments, passed, {name: [*RUNGS[name], *places.get(name, [])] for name in names}


def refit(data: Path, folder: Path, options: Sequence[str]) -> None:
    """Fill ``folder`` with links to what ``data`` has prepared, and with Gaussians of its own; what is done is skipped."""
    for path in (*data.glob("*.json"), *data.glob("train/*.*"), *data.glob("val/*.*")):
        link = make_folder((folder / path.relative_to(data)).parent) / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    with experiments.ended_with_us() as children:
        for script in (["2dgs_counting_1gs_gsplat.py", *options], ["GS2D/process_gaussians.py"]):
            children.run([str(ROOT / script[0]), *script[1:], "--root-path", str(folder)])


def main() -> int:
    """Fit what a rung wants fitted, do the runs that are missing, and report."""
    arguments, passed, chosen = parse()
    for name in chosen.keys() & FITS:
        refit(arguments.data, arguments.out / name, FITS[name])

    def table(results: Results, guesses: tuple[float, float]) -> str:
        rows = [("rung", "seeds", "epochs", "MAE", "MSE", "F1 at 4 px", "F1 at 8 px", "error, sparse", "error, dense")]
        for name, found in results.items():
            errors = [experiments.spread(found, key) for key in ("mae", "mse")]
            errors += [experiments.spread(found, key, 2) for key in ("f1_4px", "f1")]
            errors += [experiments.spread(found, key, sign="+") for key in ("sparse_error", "dense_error")]
            rows.append((name, len(found), experiments.spread(found, "epochs", 0), *errors))
        rows.append(("mean density of the training images", "", "", *(f"{error:.1f}" for error in guesses), *[""] * 4))
        return experiments.write_table(arguments.out, "crowds", rows, REMARK)

    return experiments.run_experiment(arguments, experiments.plan(arguments, passed, chosen), table)


if __name__ == "__main__":
    run_script(main)
