"""One archive of a trained model: weights as pth and safetensors, model card, configuration, and results with their report.

    python scripts/pack.py runs/qnrf_vgg --results results/vgg

It is unpacked again and loaded; results are packed with the weights that counted them alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import load_model
from models.export import require, to_safetensors
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation.model_card import write_card
from utils.files import atomic_write, file_hash, make_folder, read_json
from utils.training.run_folder import BEST, CARD, RunFolder, shareable

RUN_FILES = (BEST, CARD, "metrics.jsonl", "environment.json")
RESULT_FILES = ("results.csv", "summary.json", "report.html")


def pack(run: Path, results: Path | None, archive: Path) -> list[str]:
    """Write the archive -> the names in it, below a folder called as the run."""
    options = yaml.safe_dump(shareable(RunFolder(run).options()), allow_unicode=True)
    paths = {name: run / name for name in RUN_FILES}
    paths |= {f"results/{name}": results / name for name in RESULT_FILES} if results else {}
    contents = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    contents |= {"config.yml": options.encode(), "model.safetensors": to_safetensors(*load_model(run))}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(f"{run.name}/{name}")  # of one date for all: the same content gives the same bytes
            entry.external_attr = 0o644 << 16
            is_weights = name.endswith((".pth", ".safetensors"))  # which do not shrink
            file.writestr(entry, content, zipfile.ZIP_STORED if is_weights else zipfile.ZIP_DEFLATED)
        return file.namelist()


def check(folder: Path) -> None:
    """Load both forms of the weights in an unpacked folder; ``ValueError`` where they differ."""
    (network, metadata), (other, other_metadata) = load_model(folder), load_model(folder / "model.safetensors")
    pairs = zip(network.state_dict().items(), other.state_dict().items(), strict=True)
    if metadata != other_metadata or not all(a == b and torch.equal(one, two) for (a, one), (b, two) in pairs):
        raise ValueError(f"{folder.name}: the two forms of its weights differ once unpacked; pack it again")


def main() -> None:
    """Pack, unpack, compare."""
    parser = make_parser("Pack a trained model to hand on.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a training run")
    add("--results", type=Path, metavar="DIR", help="folder that test.py --out wrote, to be packed too")
    add("--out", type=Path, metavar="FILE", help="the archive (default: RUN.zip)")
    add("--data-dir", "--root-path", "--device", help=argparse.SUPPRESS)  # of former commands, which counted again
    arguments = parser.parse_args()
    run, results = arguments.run.resolve(), arguments.results
    archive = arguments.out or run.with_name(f"{run.name}.zip")
    make_folder(archive.parent)
    require("safetensors")
    if write_card(run) is None:
        raise ValueError(f"{run}: holds no {BEST} or no config.yml; give the folder that train_gs.py wrote")
    if results and read_json(results / "summary.json", {}).get("weights_sha256") != file_hash(run / BEST):
        raise ValueError(f"--results {results}: not of this {BEST}; give a folder that test.py --out wrote with it")
    with atomic_write(archive) as partial, tempfile.TemporaryDirectory() as scratch:  # it gets its name after the check
        names = pack(run, results, partial)
        zipfile.ZipFile(partial).extractall(scratch)
        check(Path(scratch, run.name))
    print("\n".join(names))
    size = archive.stat().st_size / 1e6
    print(f"{archive}: {size:.1f} MB; unpacked, both forms of the weights load and are equal")
    if any(name.endswith("report.html") for name in names):
        print("its report.html shows photographs of the data set: mind their licence before you hand it on")


if __name__ == "__main__":
    run_script(main)
