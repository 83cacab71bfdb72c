"""From raw data to the rows of published tables: prepare, splat, clean, train, evaluate, and print both numbers.

    python scripts/reproduce_tables.py qnrf vgg                               train, then evaluate
    python scripts/reproduce_tables.py qnrf --checkpoint best_model.pth       evaluate a released checkpoint instead
    python scripts/reproduce_tables.py sha bl gst --train-options "--minutes 60"    two losses on ShanghaiTech A, an hour each

Without names: every data set, both networks and the losses with published numbers, those other than GST's on vgg. The same command
goes on where it was interrupted: each stage skips what is done.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import MODELS
from scripts.experiments import Task, recipe, run_tasks, write_table
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import mae_mse
from utils.evaluation.results import read_counts
from utils.files import make_folder

SERVER = "https://www.crowdbenchmark.com"  # of NWPU-Crowd
REMARKS = (
    "Published: GST's row of a later paper's comparison table, which does not name the backbone; both networks stand beside it.",
    "ShanghaiTech: BL (Ma et al., ICCV 2019), DM-Count (Wang et al., NeurIPS 2020) and the generalized loss (Wan et al., CVPR 2021) "
    "on VGG19, as their papers say; GST's has no published number.",
    "MSE: root of the mean squared error. Difference: measured minus published; below zero is better than published.",
    "NWPU-Crowd's test annotations are not public: measured is val, the published number is test's, and the two are not compared. "
    f"The submission file that was written gets its test score at {SERVER}.",
)


class Source(NamedTuple):
    """A data set: how its raw form is called, found and prepared."""

    title: str
    origin: str  # where to get it
    raw: str  # folder in --data
    script: str  # preprocess_dataset_<script>.py
    options: tuple[str, ...] = ()  # of the script
    measured: str = "test"  # split whose annotations are public


SHANGHAITECH = "https://github.com/desenzhou/ShanghaiTechDataset"
SOURCES = {
    "qnrf": Source("UCF-QNRF", "https://www.crcv.ucf.edu/data/ucf-qnrf/", "UCF-QNRF_ECCV18", "ucf"),
    "jhu": Source("JHU-Crowd++", "http://www.crowd-counting.com", "jhu_crowd_v2.0", "jhu"),
    "nwpu": Source("NWPU-Crowd", f"{SERVER}/nwpucrowd.html", "NWPU-Crowd", "nwpu", measured="val"),
    "sha": Source("ShanghaiTech A", SHANGHAITECH, "ShanghaiTech", "sh", ("--part", "A")),
    "shb": Source("ShanghaiTech B", SHANGHAITECH, "ShanghaiTech", "sh", ("--part", "B")),
}
# MAE, MSE on test, by data set and loss; GST has rows of its own on all.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "qnrf": {"gst": (80.7, 131.1)},
    "jhu": {"gst": (53.9, 225.4)},
    "nwpu": {"gst": (74.4, 306.2)},
    "sha": {"bl": (62.8, 101.8), "dm-count": (59.7, 95.7), "gloss": (61.3, 95.4)},
    "shb": {"bl": (7.7, 12.7), "dm-count": (7.4, 11.8), "gloss": (7.3, 11.7)},
}
RECIPES = ("gst", "bl", "dm-count", "gloss")
LISTS = ("train.txt", "val.txt")  # of the Bayesian-Crowd-Counting repository, for UCF-QNRF


class Row(NamedTuple):
    """A row of the table: what is trained on what, in which folder."""

    data: str
    model: str | None  # None: what the checkpoint says
    loss: str
    folder: Path
    network: str  # as the table names it


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; wrong ones end the script."""
    parser = make_parser("Reproduce the rows of GST's published table that can be produced here.")
    add = parser.add_argument
    names = f"of {', '.join(SOURCES)}, of {', '.join(MODELS)} and of {', '.join(RECIPES)}"
    add("names", nargs="*", metavar="NAME", help=f"rows: {names}; none of a kind: all of it")
    add("--data", type=Path, default=Path("data"), metavar="P", help="folder of the raw and prepared data sets")
    add("--runs", type=Path, default=Path("runs"), metavar="P", help="folder of training runs and of the table")
    add("--checkpoint", type=Path, metavar="FILE", help="evaluate this .pth or .tar file instead of training")
    add("--device", default="auto", help="GPU id, several for training (0,1), or cpu")
    for stage in ("preprocess", "splat", "train"):
        add(f"--{stage}-options", default="", metavar='"..."', help=f"further options of the {stage} stage")
    add("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in (*SOURCES, *MODELS, *RECIPES):
            parser.error(f"{name!r}: no such data set, network or loss; name some {names}")
    arguments.datasets = [name for name in SOURCES if name in arguments.names] or list(SOURCES)
    if arguments.checkpoint and len(arguments.datasets) > 1:
        parser.error(f"--checkpoint {arguments.checkpoint}: name the data set that it is evaluated on")
    return arguments


def all_rows(runs: Path) -> list[Row]:
    """The rows that can be trained: GST on both networks, losses with published numbers on vgg."""
    rows = []
    for name, published in PUBLISHED.items():
        rows += [Row(name, model, "gst", runs / f"{name}_{model}", model) for model in MODELS]
        others = [loss for loss in published if loss != "gst"]
        rows += [Row(name, "vgg", loss, runs / f"{name}_vgg_{loss}", f"vgg, {loss}") for loss in others]
    return rows


def chosen_rows(arguments: argparse.Namespace) -> list[Row]:
    """The rows that are asked for, or that of the checkpoint."""
    models = [name for name in MODELS if name in arguments.names] or list(MODELS)
    losses = [name for name in RECIPES if name in arguments.names] or list(RECIPES)
    if arguments.checkpoint:
        (name,), model = arguments.datasets, models[0] if len(models) == 1 else None
        folder = arguments.runs / f"{name}_{arguments.checkpoint.stem}_released"
        return [Row(name, model, "gst", folder, f"{model or ''} {arguments.checkpoint}".strip())]
    rows = [row for row in all_rows(arguments.runs) if row.data in arguments.datasets]
    return [row for row in rows if row.model in models and row.loss in losses]


def commands(name: str, todo: Sequence[Row], arguments: argparse.Namespace) -> Iterator[list[str]]:
    """What the rows of a data set need, from its raw files on; each command is made when its turn has come."""
    rows = [row for row in todo if row.data == name]
    source, prepared = SOURCES[name], f"{'UCF' if name == 'qnrf' else name.upper()}-Train-Val-Test"
    raw, data = arguments.data / source.raw, arguments.data / prepared
    lists = []
    if name == "qnrf" and all((raw / file).exists() for file in LISTS):
        lists = ["--train-list", str(raw / LISTS[0]), "--val-list", str(raw / LISTS[1])]
    paths = ["--input-dataset-path", str(raw), "--output-dataset-path", str(data)]
    more = shlex.split(arguments.preprocess_options)
    yield [f"preprocess_dataset_{source.script}.py", *paths, *source.options, *lists, *more]
    if not arguments.checkpoint and any(row.loss == "gst" for row in rows):
        yield ["2dgs_counting_1gs_gsplat.py", "--root-path", str(data), *shlex.split(arguments.splat_options)]
        yield ["GS2D/process_gaussians.py", "--root-path", str(data)]
    for row in rows:
        network = ["--model-name", row.model] if row.model else []
        checkpoint = arguments.checkpoint or row.folder / "best_model.pth"
        if not arguments.checkpoint:
            place = ["--dataset", name, "--data-dir", str(data), "--save-dir", str(row.folder)]
            more = ["--device", arguments.device, *shlex.split(arguments.train_options)]
            yield ["train_gs.py", *recipe(row.loss, name), *network, *place, *more]
        device = arguments.device.partition(",")[0]
        test = ["test.py", "--save-path", str(checkpoint), *network, "--data-dir", str(data), "--device", device]
        counted, submission = row.folder / source.measured, row.folder / "submission.txt"
        if arguments.checkpoint or not is_newer(counted / "results.csv", checkpoint):
            yield [*test, "--split", source.measured, "--out", str(counted)]
        if source.measured != "test" and (arguments.checkpoint or not is_newer(submission, checkpoint)):
            yield [*test, "--split", "test", "--nwpu-submission", str(submission)]


def is_newer(product: Path, checkpoint: Path) -> bool:
    """Whether a product was made of what a training has left; a released file has a date of its own."""
    return product.exists() and checkpoint.exists() and product.stat().st_mtime > checkpoint.stat().st_mtime


def report(rows: Sequence[Row], folder: Path) -> str:
    """Write the table of the rows, measured or not -> its Markdown."""
    table = [("data set", "network", "split", "measured MAE / MSE", "published MAE / MSE (test)", "difference")]
    for row in rows:
        source, known = SOURCES[row.data], PUBLISHED[row.data].get(row.loss)
        results = row.folder / source.measured / "results.csv"
        measured, difference = "not measured yet", ""
        if results.exists():
            mae, mse = mae_mse(read_counts(results))
            measured = f"{mae:.1f} / {mse:.1f}"
            if known and source.measured == "test":
                difference = f"{mae - known[0]:+.1f} / {mse - known[1]:+.1f}"
            elif known:
                difference = "not comparable"
        published = f"{known[0]} / {known[1]}" if known else "none"
        table.append((source.title, row.network, source.measured, measured, published, difference))
    return write_table(folder, "reproduction", table, "\n\n".join(REMARKS))


def main() -> int:
    """Check that the data are there, run what is missing, print the table."""
    arguments = parse()
    todo = chosen_rows(arguments)
    rows = list(dict.fromkeys([*all_rows(arguments.runs), *todo]))

    def reported(name: str) -> Iterator[list[str]]:
        for command in commands(name, todo, arguments):
            yield command
            report(rows, make_folder(arguments.runs))

    if arguments.dry_run:
        for name in arguments.datasets:
            print("\n".join(shlex.join(["python", *command]) for command in commands(name, todo, arguments)))
        return 0
    for source in map(SOURCES.get, arguments.datasets):
        if not (arguments.data / source.raw).is_dir():
            raise ValueError(
                f"{arguments.data / source.raw}: no such folder; unpack {source.title} ({source.origin}) there"
            )
    failures = run_tasks([Task(SOURCES[name].title, reported(name)) for name in arguments.datasets])
    print(report(rows, make_folder(arguments.runs)), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
