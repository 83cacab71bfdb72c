"""What of a prepared data set, and of the runs on it, is done, missing, stale or failed, and the command that comes next.

    python -m datasets.audit.stages --data-dir P [--runs DIR] [--json]

Nothing is decoded: images count by their presence, an evaluation by the hash of its weights, all else by small files. ``python -m datasets.check`` looks at
every pixel and prints the same table. ``python -m utils.status`` is another name of this command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.audit.report import find_images, read_record
from datasets.crowd import load_annotations
from GS2D.gaussians import SAME_POINT, distance_to_points, read_file
from GS2D.kernel import params_hash, read_attributes
from utils.cli import one_line, run_script
from utils.config import make_parser, parse_arguments
from utils.files import SPLITS, file_hash, gaussians_path, kernel_path, points_path, read_points
from utils.lock import holder
from utils.training.run_folder import RunFolder, read_json

STATES = ("done", "missing", "stale", "failed")
_DISTORTED = 1.5  # longest over shortest axis that cleaning leaves by default
_ROUNDING = 1e-5
_SHOWN = 5  # files named for each kind of trouble


def look(root: Path, runs: Path) -> dict[str, Any]:
    """``data_dir``; ``stages``, a row for each split and stage; ``runs`` on these data; the ``next`` command.

    Raises ``FileNotFoundError`` for a folder that does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check --data-dir (preprocess_dataset_*.py writes it)")
    record = read_record(root)
    try:
        images = find_images(root)
    except FileNotFoundError:
        images = []
    stages = []
    for split in SPLITS:
        present = {image.relative_to(root).as_posix(): image for image in images if image.parent == root / split}
        names = sorted(present.keys() | {name for name in record if name.startswith(f"{split}/")})
        if names:
            stages += _split(root, split, names, record)
    found = [entry for folder in _run_folders(runs) if (entry := _run(folder))]
    on_these = [entry for entry in found if Path(entry.pop("data_dir")).resolve() == root.resolve()]
    status = {"data_dir": str(root), "stages": stages, "runs": on_these, "other_runs": len(found) - len(on_these)}
    return {**status, "next": _next(root, stages, on_these)}


def _split(root: Path, split: str, names: list[str], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    images = [root / name for name in names]
    present = [image for image in images if image.exists()]
    annotated = split != "test" or any((root / split).glob("*.npy"))
    found = [_image(image, record.get(name, {}), annotated) for image, name in zip(images, names, strict=True)]
    rows = [_row(split, "images", found)]
    if split != "train" and not (root / split / "gs_params").is_dir():
        return rows
    fits, cleaned, kernels = [], [], []
    for image in present:
        fit, is_clean, current_hash = _gaussians(image)
        fits.append(fit)
        cleaned.append(("done" if is_clean else "missing", ""))
        kernels.append(_kernel(image, current_hash))
    return [*rows, *map(_row, [split] * 3, ("Gaussians", "cleaned", "kernels"), (fits, cleaned, kernels))]


def _row(split: str, stage: str, found: list[tuple[str, str]]) -> dict[str, Any]:
    """Counts of the states, and the reasons of those that have one."""
    counts = {state: sum(one == state for one, _ in found) for state in STATES}
    reasons = {f"{state}_files": [reason for one, reason in found if one == state and reason] for state in STATES[2:]}
    return {"split": split, "stage": stage, **counts, **reasons}


def _image(image: Path, entry: Mapping[str, Any], annotated: bool) -> tuple[str, str]:
    """State of a prepared image and its points, and the reason where it is stale or failed."""
    try:
        if not image.exists() or (annotated and not points_path(image).exists() and entry.get("points", 0) is not None):
            return "missing", ""
        if annotated and points_path(image).exists():
            read_points(points_path(image))
        if not image.stat().st_size:
            return "failed", f"{image}: the file is empty"
        source = Path(entry.get("source") or image)
        made_from = entry.get("made_from")
        raw = made_from.get("raw_files") if isinstance(made_from, dict) else None
        if raw and source.exists() and [source.stat().st_size, source.stat().st_mtime_ns] != raw[0]:
            return "stale", f"{image}: {source} has changed since"
    except (OSError, ValueError) as error:
        return "failed", one_line(error)
    return "done", ""


def _gaussians(image: Path) -> tuple[tuple[str, str], bool, str | None]:
    """State and reason of the fitted Gaussians; whether none is distorted; the hash that a kernel of theirs carries."""
    path = gaussians_path(image)
    if not path.exists():
        return ("missing", ""), False, None
    state = "failed"
    try:
        gaussians = read_file(path)[0]
        if not distance_to_points(gaussians.means, read_points(points_path(image))[:, :2]) <= SAME_POINT:
            state = "stale"
        points, _, scales, rotations = load_annotations(image)
    except (OSError, ValueError) as error:
        return (state, one_line(error)), False, None
    axes = gaussians.scales.numpy()
    is_clean = not (axes.max(axis=1) > (_DISTORTED + _ROUNDING) * axes.min(axis=1)).any() if len(axes) else True
    return ("done", ""), is_clean, params_hash(points, scales, rotations)


def _kernel(image: Path, current: str | None) -> tuple[str, str]:
    path = kernel_path(image)
    if not path.exists():
        return "missing", ""
    attributes = read_attributes(path)
    if attributes is None:
        return "failed", f"{path}: not a readable kernel"
    if current is None or attributes.get("params_hash") != current:
        return "stale", f"{path}: was built from other Gaussians"
    return "done", ""


def _run_folders(runs: Path) -> list[Path]:
    """``runs`` itself or the folders below it, as deep as scripts nest them, that hold a run."""
    patterns = ("config.yml", "*/config.yml", "*/*/config.yml")
    return sorted({path.parent for pattern in patterns for path in runs.glob(pattern)}) if runs.is_dir() else []


def _run(path: Path) -> dict[str, Any] | None:
    """What a run's folder tells, or None where it is no run's."""
    folder = RunFolder(path)
    try:
        options, progress = folder.options(), folder.progress()
        epochs, data = progress["epochs"] or int(options["epochs"]), os.fspath(options["data_dir"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    done, who = progress["done"] or 0, holder(path)
    if who:
        state = f"running ({who})"
    elif done >= epochs:
        state = "done"
    else:
        state = "failed" if any((path / "trouble").glob("epoch*_batch.pt")) else "interrupted"
    best = folder.best()
    best = {"epoch": best["epoch"], "mae": best["val_mae"], "mse": best["val_mse"]} if best else None
    run = {"folder": str(path), "data_dir": data, "state": state, "epochs_done": done, "epochs": epochs}
    return {**run, "best": best, "results": _results(folder)}


def _results(folder: RunFolder) -> list[str]:
    """The folders below a run's in which test.py counted with the best model that is there now."""
    summaries = sorted(folder.path.glob("**/summary.json"))
    if not summaries or not folder.best_path.is_file():
        return []
    sha256, found = file_hash(folder.best_path), [(path.parent, read_json(path)) for path in summaries]
    return [str(path) for path, said in found if isinstance(said, dict) and said.get("weights_sha256") == sha256]


def _next(root: Path, stages: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """The first command that is due, in the order of the stages."""

    def count(stage: str, *states: str) -> int:
        return sum(row[state] for row in stages if row["stage"] == stage for state in states)

    if not stages or count("images", "missing", "stale", "failed"):
        return f"python preprocess_dataset_*.py --input-dataset-path RAW --output-dataset-path {root}"
    if count("Gaussians", "stale", "failed"):
        return f"delete the stale and failed files, then python 2dgs_counting_1gs_gsplat.py --root-path {root}"
    fitted = [row["split"] for row in stages if row["stage"] == "Gaussians"]
    if count("Gaussians", "missing"):
        splits = "" if fitted == ["train"] else f" --splits {' '.join(fitted)}"
        return f"python 2dgs_counting_1gs_gsplat.py --root-path {root}{splits}"
    if count("cleaned", "missing"):
        return f"python GS2D/process_gaussians.py --root-path {root}"
    if count("kernels", "stale", "failed") or (count("kernels", "done") and count("kernels", "missing")):
        return f"python GS2D/build_kernels.py --root-path {root}"
    states = {run["folder"]: run["state"].split()[0] for run in runs}
    for folder, state in states.items():
        if state in ("interrupted", "failed"):
            return f"python train_gs.py --config {folder}/config.yml"
    for run in runs:
        if states[run["folder"]] == "done" and run["best"] and not run["results"]:
            return f"python test.py --save-path {run['folder']} --data-dir {root} --out {run['folder']}/test"
    if "running" in states.values():
        return "wait for the run that is under way"
    return "nothing; every stage is done" if runs else f"python train_gs.py --data-dir {root}"


def print_stages(stages: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of the stages of each split, and what is stale or failed."""
    states = ("done", "missing", "stale", "failed")
    print(f"{'split':<7}{'stage':<12}" + "".join(f"{state:>9}" for state in states))
    for row in stages:
        print(f"{row['split']:<7}{row['stage']:<12}" + "".join(f"{row[state]:>9}" for state in states))
    for state in ("stale", "failed"):
        lines = [line for row in stages for line in row[f"{state}_files"]]
        for line in lines[:_SHOWN]:
            print(f"{state}: {line}")
        if len(lines) > _SHOWN:
            print(f"{state}: and {len(lines) - _SHOWN} more")


def print_status(status: Mapping[str, Any]) -> None:
    """Print what ``look`` found: stages, trouble, runs, the next command."""
    print(f"{status['data_dir']}")
    print_stages(status["stages"])
    for run in status["runs"]:
        best = run["best"]
        shown = (
            f"best MAE {best['mae']:.3f}, MSE {best['mse']:.3f} (epoch {best['epoch']})" if best else "no best model"
        )
        results = f"; results: {', '.join(run['results'])}" if run["results"] else ""
        print(f"run {run['folder']}: {run['state']}, {run['epochs_done']} of {run['epochs']} epochs, {shown}{results}")
    if status["other_runs"]:
        print(f"{status['other_runs']} more runs, on other data")
    print(f"next: {status['next']}")


def main() -> None:
    """Look and print."""
    parser = make_parser("Show what of a data set and the runs on it is done, and the command that comes next.")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="P", help="prepared data set")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of training runs")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with the names of all files")
    arguments = parse_arguments(parser)
    status = look(arguments.data_dir, arguments.runs)
    if arguments.json:
        print(json.dumps(status, indent=1))
    else:
        print_status(status)


if __name__ == "__main__":
    run_script(main)
