"""One archive of a trained model: weights as pth and safetensors, model card, configuration, and results with their report.

    python scripts/pack.py runs/qnrf_vgg --results results/vgg --data-dir data/UCF-Train-Val-Test

It is unpacked again and loaded; with --data-dir its network counts the split of the results again, image by image.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.crowd import SPLITS, Crowd
from models import load_model
from models.export import require, save_safetensors
from utils.cli import run_script
from utils.config import make_parser
from utils.device import fabric_devices
from utils.evaluation import WINDOW, evaluate
from utils.evaluation.model_card import write_card
from utils.files import atomic_write, make_folder
from utils.training.run_folder import BEST, CARD, RunFolder, shareable

RUN_FILES = (BEST, CARD, "metrics.jsonl", "environment.json")
RESULT_FILES = ("results.csv", "summary.json", "report.html")
DATE = (1980, 1, 1, 0, 0, 0)  # the first that the format knows: the same content gives the same bytes
AGREEMENT = 1e-3  # of a count: another machine rounds otherwise


def look_at(run: Path, results: Path | None) -> None:
    """``ValueError`` where a folder is not what it should be; the run's model card is brought up to date."""
    if not (run / BEST).is_file():
        raise ValueError(f"{run}: holds no {BEST}; give the folder of a run that was validated")
    if write_card(run) is None:
        raise ValueError(f"{run}: holds no config.yml; give the folder that train_gs.py wrote")
    if results and not (results / "results.csv").is_file():
        raise ValueError(f"--results {results}: holds no results.csv; give a folder that test.py --out wrote")


def pack(run: Path, results: Path | None, archive: Path) -> list[str]:
    """Write the archive -> the names in it, below a folder called as the run."""
    options = shareable(RunFolder(run).options())
    files = [(name, run / name) for name in RUN_FILES if (run / name).is_file()]
    files += [(f"results/{name}", results / name) for name in RESULT_FILES if results and (results / name).is_file()]
    names = []
    with tempfile.TemporaryDirectory() as scratch:
        weights, config = Path(scratch, "model.safetensors"), Path(scratch, "config.yml")
        network, metadata = load_model(run)
        save_safetensors(network, weights, metadata)
        config.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        with zipfile.ZipFile(archive, "w") as file:
            for name, path in [*files, (weights.name, weights), (config.name, config)]:
                entry = zipfile.ZipInfo(f"{run.name}/{name}", DATE)
                entry.external_attr = 0o644 << 16
                # Weights do not shrink, and what is stored can be mapped into memory.
                entry.compress_type = (
                    zipfile.ZIP_STORED if path.suffix in (".pth", ".safetensors") else zipfile.ZIP_DEFLATED
                )
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, file.open(entry, "w") as target:
                    while block := source.read(1 << 20):
                        target.write(block)
                names.append(entry.filename)
    return names


def check(archive: Path, data_dir: Path | None, split: str, device: str) -> str:
    """Unpack the archive, load both forms of its weights, and count again where there are data -> what was seen.

    Raises ``ValueError``, naming the run, where something differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
        (folder,) = Path(scratch).iterdir()
        network, metadata = load_model(folder)
        other, other_metadata = load_model(folder / "model.safetensors")
        pairs = zip(network.state_dict().items(), other.state_dict().items(), strict=True)
        if metadata != other_metadata or not all(a == b and torch.equal(one, two) for (a, one), (b, two) in pairs):
            raise ValueError(f"{folder.name}: the two forms of its weights differ once unpacked; pack it again")
        if data_dir is None:
            return "both forms of the weights load and are equal"
        found = fabric_devices(device)
        device = "cpu" if found["accelerator"] == "cpu" else f"cuda:{found['devices'][0]}"
        counted = evaluate(other.to(device), Crowd(data_dir, None, split, training=False), device, WINDOW)
        return f"both forms of the weights load and are equal; {_compared(folder, counted)}"


def _compared(folder: Path, counted: list) -> str:
    """How the counts of the unpacked network agree with those of the packed results."""
    table = folder / "results" / "results.csv"
    if not table.is_file():
        return f"{len(counted)} images counted"
    summary = json.loads((table.parent / "summary.json").read_text(encoding="utf-8"))
    options = summary["configuration"]
    if options["window"] != WINDOW or options["overlap"] or options["flip_average"] or options["precision"] != "32":
        return f"{len(counted)} images counted; not compared, since the results depart from the published windows"
    with table.open(encoding="utf-8", newline="") as file:
        packed = {row["image"]: float(row["predicted"]) for row in csv.DictReader(file)}
    for result in counted:
        expected = packed.get(result.name)
        if expected is None or abs(result.predicted - expected) > AGREEMENT * max(1, expected):
            reason = f"{result.name}: {result.predicted:.3f} counted, the results say {expected}"
            raise ValueError(f"{folder.name}: {reason}; pack results of these weights and this data")
    return f"{len(counted)} images counted as in its results"


def parse() -> argparse.Namespace:
    parser = make_parser("Pack a trained model to hand on.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a training run")
    add("--results", type=Path, metavar="DIR", help="folder that test.py --out wrote, to be packed too")
    add("--out", type=Path, metavar="FILE", help="the archive (default: RUN.zip)")
    add("--data-dir", type=Path, metavar="P", help="prepared data set, to count again with what was unpacked")
    add("--split", choices=SPLITS, default="test", help="of the data set")
    add("--device", default="auto", metavar="D", help="GPU id or cpu; auto: the first GPU if any")
    return parser.parse_args()


def main() -> None:
    """Pack, unpack, compare."""
    arguments = parse()
    run = arguments.run.resolve()
    archive = arguments.out or run.with_name(f"{run.name}.zip")
    make_folder(archive.parent)
    require("safetensors")
    look_at(run, arguments.results)
    with atomic_write(archive) as partial:  # it gets its name after the check
        names = pack(run, arguments.results, partial)
        seen = check(partial, arguments.data_dir, arguments.split, arguments.device)
    print("\n".join(names))
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB; unpacked: {seen}")
    if any(name.endswith("report.html") for name in names):
        print("its report.html shows photographs of the data set: mind their licence before you hand it on")


if __name__ == "__main__":
    run_script(main)
