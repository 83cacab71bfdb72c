"""From raw data to the rows of published tables: prepare, splat, clean, train, evaluate, and print both numbers.

    python scripts/reproduce_tables.py qnrf vgg                               train, then evaluate
    python scripts/reproduce_tables.py qnrf --checkpoint best_model.pth       evaluate a released checkpoint instead
    python scripts/reproduce_tables.py sha bl gst --train-options "--minutes 60"    two losses on ShanghaiTech A, an hour each

Without names: every data set, both networks and the losses with published numbers, those other than GST's on vgg. The same command
goes on where it was interrupted: each stage skips what is done.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import MODELS
from scripts import experiments
from scripts.experiments import FIRST_SEED, Run, Task, spread
from utils.cli import run_script
from utils.config import make_parser, number
from utils.files import file_hash, make_folder

SERVER = "https://www.crowdbenchmark.com"  # of NWPU-Crowd
REMARKS = (
    "Published: GST's row of a later paper's comparison table, which does not name the backbone; both networks stand beside it.",
    "ShanghaiTech: BL (Ma et al., ICCV 2019), DM-Count (Wang et al., NeurIPS 2020) and the generalized loss (Wan et al., CVPR 2021) "
    "on VGG19, as their papers say; GST's has no published number.",
    "Mean ± standard deviation where several seeds were trained. MSE: root of the mean squared error.",
    "NWPU-Crowd's test annotations are not public: measured is val, the published number is test's, and the two are not compared. "
    f"The submission file that was written gets its test score at {SERVER}.",
)


class Source(NamedTuple):
    """A data set: how its raw form is called, found and prepared."""

    title: str
    origin: str  # where to get it
    raw: str  # folder in --data
    prepared: str  # the same
    preprocess: list[str]  # the script and its options
    measured: str = "test"  # split whose annotations are public


QNRF, SHANGHAITECH = "https://www.crcv.ucf.edu/data/ucf-qnrf/", "https://github.com/desenzhou/ShanghaiTechDataset"
UCF, JHU, NWPU, SH = ([f"preprocess_dataset_{name}.py"] for name in ("ucf", "jhu", "nwpu", "sh"))
SOURCES = {
    "qnrf": Source("UCF-QNRF", QNRF, "UCF-QNRF_ECCV18", "UCF-Train-Val-Test", UCF),
    "jhu": Source("JHU-Crowd++", "http://www.crowd-counting.com", "jhu_crowd_v2.0", "JHU-Train-Val-Test", JHU),
    "nwpu": Source("NWPU-Crowd", f"{SERVER}/nwpucrowd.html", "NWPU-Crowd", "NWPU-Train-Val-Test", NWPU, "val"),
    "sha": Source("ShanghaiTech A", SHANGHAITECH, "ShanghaiTech", "SHA-Train-Val-Test", [*SH, "--part", "A"]),
    "shb": Source("ShanghaiTech B", SHANGHAITECH, "ShanghaiTech", "SHB-Train-Val-Test", [*SH, "--part", "B"]),
}
# MAE, MSE on test, by data set and loss.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "qnrf": {"gst": (80.7, 131.1)},
    "jhu": {"gst": (53.9, 225.4)},
    "nwpu": {"gst": (74.4, 306.2)},
    "sha": {"bl": (62.8, 101.8), "dm-count": (59.7, 95.7), "gloss": (61.3, 95.4)},
    "shb": {"bl": (7.7, 12.7), "dm-count": (7.4, 11.8), "gloss": (7.3, 11.7)},
}
RECIPES = ("gst", "bl", "dm-count", "gloss")
LISTS = ("train.txt", "val.txt")  # of the Bayesian-Crowd-Counting repository, for UCF-QNRF


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; wrong ones end the script."""
    parser = make_parser("Reproduce the rows of GST's published table that can be produced here.")
    add = parser.add_argument
    names = f"of {', '.join(SOURCES)}, of {', '.join(MODELS)} and of {', '.join(RECIPES)}"
    add("names", nargs="*", metavar="NAME", help=f"rows: {names}; none of a kind: all of it")
    add("--data", type=Path, default=Path("data"), metavar="P", help="folder of the raw and prepared data sets")
    add("--runs", type=Path, default=Path("runs"), metavar="P", help="folder of training runs and of the table")
    add("--checkpoint", type=Path, metavar="FILE", help="evaluate this .pth or .tar file instead of training")
    add("--seeds", type=number(int, 1), default=1, metavar="N", help=f"runs of each row, from seed {FIRST_SEED} on")
    add("--device", default="auto", help="GPU id, several for training (0,1), or cpu")
    for stage in ("preprocess", "splat", "train"):
        add(f"--{stage}-options", default="", metavar='"..."', help=f"further options of the {stage} stage")
    add("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in (*SOURCES, *MODELS, *RECIPES):
            parser.error(f"{name!r}: no such data set, network or loss; name some {names}")
    kinds = [[name for name in kind if name in arguments.names] or list(kind) for kind in (SOURCES, MODELS, RECIPES)]
    arguments.datasets, arguments.models, arguments.losses = kinds
    if arguments.checkpoint and len(arguments.datasets) > 1:
        parser.error(f"--checkpoint {arguments.checkpoint}: name the data set that it is evaluated on")
    return arguments


def plan_runs(name: str, data: Path, arguments: argparse.Namespace) -> list[Run]:
    """The runs of a data set that are asked for: GST on both networks, losses with published numbers on vgg.

    Or the evaluation of the checkpoint. Where the annotations of test are not public, a run also writes a submission.
    """

    def evaluation(weights: Path, split: str, *options: str) -> list[str]:
        device = arguments.device.partition(",")[0]
        fixed = ["--save-path", str(weights), "--data-dir", str(data), "--device", device]
        return ["test.py", *fixed, "--split", split, *options]

    split = SOURCES[name].measured
    if arguments.checkpoint:
        folder = arguments.runs / f"{name}_{arguments.checkpoint.stem}_released"
        test = evaluation(arguments.checkpoint, split, "--out", str(folder / split))
        runs = [Run("gst", FIRST_SEED, folder, split, [test], {"checkpoint": file_hash(arguments.checkpoint)})]
    else:
        chosen = [(model, "gst") for model in MODELS] + [("vgg", loss) for loss in PUBLISHED[name] if loss != "gst"]
        chosen = [(model, loss) for model, loss in chosen if model in arguments.models and loss in arguments.losses]
        common = ["--dataset", name, "--data-dir", str(data), "--device", arguments.device]
        common += shlex.split(arguments.train_options)
        runs = [
            experiments.plan(
                loss,
                seed,
                arguments.runs / f"{name}_{model}_{loss}_seed{seed}",
                split,
                [*experiments.recipe(loss, name), "--model-name", model, *common],
            )
            for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds)
            for model, loss in chosen
        ]
    for run in runs if split != "test" else ():
        weights = arguments.checkpoint or run.folder / "best_model.pth"
        run.commands.append(evaluation(weights, "test", "--nwpu-submission", str(run.folder / "submission.txt")))
    return runs


def commands(name: str, data: Path, runs: Sequence[Run], arguments: argparse.Namespace) -> Iterator[list[str]]:
    """What is missing of the runs of a data set, from its raw files on."""
    missing = [run for run in runs if not experiments.read_result(run)]
    if not missing:
        return
    raw, lists = arguments.data / SOURCES[name].raw, []
    if name == "qnrf" and all((raw / file).exists() for file in LISTS):
        lists = ["--train-list", str(raw / LISTS[0]), "--val-list", str(raw / LISTS[1])]
    script, *options = SOURCES[name].preprocess
    more = shlex.split(arguments.preprocess_options)
    yield [script, "--input-dataset-path", str(raw), "--output-dataset-path", str(data), *options, *lists, *more]
    if any(run.name == "gst" for run in missing) and not arguments.checkpoint:
        yield ["2dgs_counting_1gs_gsplat.py", "--root-path", str(data), *shlex.split(arguments.splat_options)]
        yield ["GS2D/process_gaussians.py", "--root-path", str(data)]
    for run in missing:
        yield from run.commands if arguments.dry_run else experiments.carry_out(run, lambda: report(arguments.runs))


def report(folder: Path) -> str:
    """Write the table of what was measured, a row for all seeds of a network and loss -> its Markdown."""
    table = [("data set", "network and loss", "split", "seeds", "measured MAE / MSE", "published MAE / MSE (test)")]
    found: dict[tuple[str, str], list[dict]] = {}
    for path in sorted(folder.glob("*/result.json")):
        name, _, trained = path.parent.name.rpartition("_")[0].partition("_")
        if name in SOURCES:
            found.setdefault((name, trained), []).append(json.loads(path.read_text(encoding="utf-8")))
    for (name, trained), results in found.items():
        measured = f"{spread(results, 'mae')} / {spread(results, 'mse')}"
        known = PUBLISHED[name].get(results[0]["loss"])
        published = f"{known[0]} / {known[1]}" if known else "none"
        table.append((SOURCES[name].title, trained, SOURCES[name].measured, len(results), measured, published))
    return experiments.write_table(folder, "reproduction", table, "\n\n".join(REMARKS))


def main() -> int:
    """Check that the data are there, run what is missing, print the table."""
    arguments = parse()
    tasks = []
    for name in arguments.datasets:
        raw, data = arguments.data / SOURCES[name].raw, arguments.data / SOURCES[name].prepared
        if not arguments.dry_run and not raw.is_dir():
            raise ValueError(f"{raw}: no such folder; unpack {SOURCES[name].title} ({SOURCES[name].origin}) there")
        runs = plan_runs(name, data, arguments)
        tasks.append(Task(SOURCES[name].title, commands(name, data, runs, arguments)))
    if arguments.dry_run:
        for task in tasks:
            print("\n".join(shlex.join(["python", *command]) for command in task.commands))
        return 0
    failures = experiments.run_tasks(tasks)
    print(report(make_folder(arguments.runs)), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
