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

from datasets.raw.annotations import FOLDS
from models import MODELS
from scripts.experiments import ROOT, Children, recipe, write_table
from utils.cli import interrupted_by_sigterm, run_script
from utils.config import make_parser, parse_arguments
from utils.evaluation import mae_mse
from utils.evaluation.results import read_counts
from utils.files import make_folder

SERVER = "https://www.crowdbenchmark.com"  # of NWPU-Crowd
REMARKS = (
    "UCF_CC_50: the mean of the MAE and of the MSE of its five folds; GST published none.",
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
    folds: int = 0  # of cross validation, each prepared, trained and measured on its own


CRCV, SHANGHAITECH = "https://www.crcv.ucf.edu/data", "https://github.com/desenzhou/ShanghaiTechDataset"
SOURCES = {
    "qnrf": Source("UCF-QNRF", f"{CRCV}/ucf-qnrf/", "UCF-QNRF_ECCV18", "ucf"),
    "jhu": Source("JHU-Crowd++", "http://www.crowd-counting.com", "jhu_crowd_v2.0", "jhu"),
    "nwpu": Source("NWPU-Crowd", f"{SERVER}/nwpucrowd.html", "NWPU-Crowd", "nwpu", measured="val"),
    "ucf50": Source("UCF_CC_50", f"{CRCV}/ucf-cc-50/", "UCF_CC_50", "ucf50", folds=FOLDS),
    "sha": Source("ShanghaiTech A", SHANGHAITECH, "ShanghaiTech", "sh", ("--part", "A")),
    "shb": Source("ShanghaiTech B", SHANGHAITECH, "ShanghaiTech", "sh", ("--part", "B")),
}
# MAE, MSE on test, by data set and loss.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "qnrf": {"gst": (80.7, 131.1)},
    "jhu": {"gst": (53.9, 225.4)},
    "nwpu": {"gst": (74.4, 306.2)},
    "ucf50": {},
    "sha": {"bl": (62.8, 101.8), "dm-count": (59.7, 95.7), "gloss": (61.3, 95.4)},
    "shb": {"bl": (7.7, 12.7), "dm-count": (7.4, 11.8), "gloss": (7.3, 11.7)},
}
LISTS = ("train.txt", "val.txt")  # of the Bayesian-Crowd-Counting repository, for UCF-QNRF
RECIPES = tuple(dict.fromkeys(["gst", *(loss for losses in PUBLISHED.values() for loss in losses)]))


class Row(NamedTuple):
    """A row of the table: what is trained on what, in which folder; ``network`` as the table names it."""

    data: str
    network: str
    loss: str
    folder: Path
    model: str | None = None  # None: what the checkpoint says


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; wrong ones end the script."""
    parser = make_parser("Reproduce the rows of GST's published table that can be produced here.")
    add = parser.add_argument
    names = f"of {', '.join(SOURCES)}, of {', '.join(MODELS)} and of {', '.join(RECIPES)}; none of a kind: all of it"
    add("names", nargs="*", metavar="NAME", help=f"rows: {names}")
    add("--data", type=Path, default=Path("data"), metavar="P", help="folder of the raw and prepared data sets")
    add("--runs", type=Path, default=Path("runs"), metavar="P", help="folder of training runs and of the table")
    add("--checkpoint", type=Path, metavar="FILE", help="evaluate this .pth or .tar file instead of training")
    add("--device", default="auto", help="GPU id, several for training (0,1), or cpu")
    for stage in ("preprocess", "splat", "train"):
        add(f"--{stage}-options", default="", metavar='"..."', help=f"further options of the {stage} stage")
    add("--dry-run", action="store_true", help="print the commands only")
    arguments = parse_arguments(parser, argv)
    for name in arguments.names:
        if name not in SOURCES and name not in MODELS and name not in RECIPES:
            kinds = f"neither a data set ({', '.join(SOURCES)}) nor a network ({', '.join(MODELS)})"
            parser.error(f"{name!r}: {kinds} nor a loss ({', '.join(RECIPES)})")
    arguments.datasets = [name for name in SOURCES if name in arguments.names] or list(SOURCES)
    arguments.losses = [name for name in RECIPES if name in arguments.names]
    arguments.models = [name for name in MODELS if name in arguments.names] or list(MODELS)
    if arguments.checkpoint and len(arguments.datasets) > 1:
        parser.error(f"--checkpoint {arguments.checkpoint}: name the data set that it is evaluated on")
    return arguments


def missing(arguments: argparse.Namespace) -> list[str]:
    """One line for each data set that is not where it should be: what to put where."""
    folders = [(arguments.data / source.raw, source) for source in map(SOURCES.get, arguments.datasets)]
    lines = [f"{raw}: no such folder; unpack {of.title} ({of.origin}) there" for raw, of in folders if not raw.is_dir()]
    if arguments.checkpoint and not arguments.checkpoint.is_file():
        lines.append(f"--checkpoint {arguments.checkpoint}: no such file")
    return lines


def folds(folder: Path, name: str) -> list[Path]:
    """What belongs to a data set, or to its folds, in folders below that of the whole."""
    return [folder / f"fold{fold}" for fold in range(1, SOURCES[name].folds + 1)] or [folder]


def prepared(arguments: argparse.Namespace, name: str) -> Path:
    """The folder of a prepared data set."""
    return arguments.data / f"{'UCF' if name == 'qnrf' else name.upper()}-Train-Val-Test"


def all_rows(runs: Path) -> list[Row]:
    """The rows that can be trained: GST on both networks, losses with published numbers on vgg."""
    rows = []
    for name, published in PUBLISHED.items():
        rows += [Row(name, model, "gst", runs / f"{name}_{model}", model) for model in MODELS]
        others = (loss for loss in published if loss != "gst")
        rows += [Row(name, f"vgg, {loss}", loss, runs / f"{name}_vgg_{loss}", "vgg") for loss in others]
    return rows


def chosen_rows(arguments: argparse.Namespace) -> list[Row]:
    """The rows that are asked for, or that of the checkpoint."""
    if arguments.checkpoint:
        (name,), model = arguments.datasets, next((model for model in MODELS if model in arguments.names), None)
        folder = arguments.runs / f"{name}_{arguments.checkpoint.stem}_released"
        return [Row(name, f"{model or ''} {arguments.checkpoint}".strip(), "gst", folder, model)]
    return [
        row
        for row in all_rows(arguments.runs)
        if row.data in arguments.datasets
        and row.model in arguments.models
        and row.loss in (arguments.losses or RECIPES)
    ]


def prepare_commands(name: str, arguments: argparse.Namespace, folder: Path, fit: bool) -> Iterator[list[str]]:
    """Raw data to what training needs in ``folder``, Gaussians only where they are asked for."""
    source = SOURCES[name]
    raw = arguments.data / source.raw
    lists = ["--fold", folder.name.removeprefix("fold")] if source.folds else []
    if name == "qnrf" and all((raw / file).exists() for file in LISTS):
        lists = ["--train-list", str(raw / LISTS[0]), "--val-list", str(raw / LISTS[1])]
    paths = ["--input-dataset-path", str(raw), "--output-dataset-path", str(folder)]
    more = shlex.split(arguments.preprocess_options)
    yield [f"preprocess_dataset_{source.script}.py", *paths, *source.options, *lists, *more]
    if fit:
        yield ["2dgs_counting_1gs_gsplat.py", "--root-path", str(folder), *shlex.split(arguments.splat_options)]
        yield ["GS2D/process_gaussians.py", "--root-path", str(folder)]


def model_commands(row: Row, arguments: argparse.Namespace, data: Path, folder: Path) -> Iterator[list[str]]:
    """Training, if there is no checkpoint, and evaluation, unless its result is newer than the checkpoint."""
    name, source = row.data, SOURCES[row.data]
    network = ["--model-name", row.model] if row.model else []
    checkpoint = arguments.checkpoint or folder / "best_model.pth"
    if not arguments.checkpoint:
        place = ["--dataset", name, "--data-dir", str(data), "--save-dir", str(folder), "--device", arguments.device]
        yield ["train_gs.py", *recipe(row.loss, name), *network, *place, *shlex.split(arguments.train_options)]
    device = arguments.device.partition(",")[0]
    test = ["test.py", "--save-path", str(checkpoint), *network, "--data-dir", str(data), "--device", device]
    counted, submission = folder / source.measured, folder / "submission.txt"
    evaluations = {counted / "results.csv": ["--split", source.measured, "--out", str(counted)]}
    if source.measured != "test":
        evaluations[submission] = ["--split", "test", "--nwpu-submission", str(submission)]
    for product, options in evaluations.items():
        # Looked at when its turn has come, since training may just have found a better model. A released file has a date
        # of its own.
        again = arguments.checkpoint or arguments.dry_run or not product.exists()
        if again or product.stat().st_mtime < checkpoint.stat().st_mtime:
            yield [*test, *options]


def all_commands(arguments: argparse.Namespace, rows: Sequence[Row]) -> Iterator[list[str]]:
    """What is missing of ``rows``, data set by data set and fold by fold; each is made when its turn has come."""
    for name in arguments.datasets:
        on_these = [row for row in rows if row.data == name]
        fit = not arguments.checkpoint and any(row.loss == "gst" for row in on_these)
        for index, data in enumerate(folds(prepared(arguments, name), name)):
            yield from prepare_commands(name, arguments, data, fit)
            for row in on_these:
                yield from model_commands(row, arguments, data, folds(row.folder, name)[index])


def report(rows: Sequence[Row], folder: Path) -> str:
    """Write the table of the rows (data set, network, run's folder), measured or not -> its Markdown."""
    table = [("data set", "network", "split", "measured MAE / MSE", "published MAE / MSE (test)", "difference")]
    for name, network, loss, run, _ in rows:
        source, known = SOURCES[name], PUBLISHED[name].get(loss)
        results = [folder / source.measured / "results.csv" for folder in folds(run, name)]
        scores = [mae_mse(read_counts(path)) for path in results if path.exists()]
        measured, difference = "not measured yet", ""
        if scores:
            found = [sum(values) / len(scores) for values in zip(*scores, strict=True)]
            measured = f"{found[0]:.1f} / {found[1]:.1f}"
            if len(scores) < len(results):
                measured += f" ({len(scores)} of {len(results)} folds)"
            if known:
                change = (f"{one - other:+.1f}" for one, other in zip(found, known))
                difference = " / ".join(change) if source.measured == "test" else "not comparable"
        published = f"{known[0]} / {known[1]}" if known else "none"
        table.append((source.title, network, source.measured, measured, published, difference))
    return write_table(folder, "reproduction", table, "\n\n".join(REMARKS))


def main() -> int:
    """Check that the data are there, run what is missing, print the table."""
    arguments = parse()
    absent = missing(arguments)
    if absent and not arguments.dry_run:
        print("\n".join(f"error: {line}" for line in absent), file=sys.stderr)
        return 1
    todo = chosen_rows(arguments)
    rows = list(dict.fromkeys([*all_rows(arguments.runs), *todo]))
    if arguments.dry_run:
        print("\n".join(shlex.join(["python", *command]) for command in all_commands(arguments, todo)))
        return 0
    make_folder(arguments.runs)
    with interrupted_by_sigterm(), Children() as children:
        for command in all_commands(arguments, todo):
            children.run([str(ROOT / command[0]), *command[1:]])
            if command[0] == "test.py":
                report(rows, arguments.runs)
    print(report(rows, arguments.runs), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
