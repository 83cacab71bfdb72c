"""What of a prepared data set and of the runs on it is there, what is wrong, and the command that comes next.

    python -m datasets.check --data-dir P [--dataset D] [--runs DIR]
    python -m datasets.check --data-dir P --quick [--json]

Decodes every image, and reads every annotation, every file of fitted Gaussians and every stored kernel. Prints errors, which
stop training or spoil it (exit code 1), warnings, the table of the preprocessing, that of the stages and the runs;
P/dataset_report.json holds all of it. ``--quick`` decodes nothing and writes nothing: a kernel counts by what it says of
itself, an evaluation by the hash of its weights.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.raw.preprocess import is_grey
from datasets.report import CROP_SIZES, SPLITS, ImageFacts, find_images, look_at, lost_images, print_report, summarise
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import kernel_command, load_kernel, params_hash, read_attributes
from GS2D.points import OtherPointsError, fit_command, load_annotations
from utils.cli import EXIT_FAILED, default_workers, for_each, one_line, run_script, warn
from utils.config import make_parser, number, parse_arguments
from utils.dataset_report import DATASETS, REPORT, read_report
from utils.files import file_hash, gaussians_path, kernel_path, points_path, read_json, write_json
from utils.images import load_image
from utils.lock import lock_holder
from utils.training.run_folder import RunFolder

STATES = ("done", "missing", "stale", "failed")
_MIN_SCALE = 1 - 1e-4  # the fit adds 1 to what is never negative; a little for rounding
_COLUMN_SUM = 1e-3  # shares below 1e-7 are not stored
_DISTORTED = 1.5 + 1e-5  # longest over shortest axis that cleaning leaves by default, and rounding


def check_image(root: Path, quick: bool, item: tuple[Path, Mapping[str, Any]]) -> ImageFacts:
    """Decode an image, unless a quick look is asked for, and check what belongs to it."""
    image, entry = item
    size, problem, warnings = {}, None, []
    if not quick:
        try:
            pixels = load_image(image)
            size = {"height": pixels.shape[0], "width": pixels.shape[1], "grey": is_grey(pixels)}
        except (OSError, ValueError) as error:
            problem = one_line(error)
    facts = look_at(root, image, {**entry, **size}, problem)
    errors = list(facts.errors)
    recorded = entry.get("width"), entry.get("height")
    if size and None not in recorded and recorded != (facts.width, facts.height):
        prepared = "prepared as {} x {}; run preprocess_dataset_*.py again".format(*recorded)
        errors.append(f"{image}: {facts.width} x {facts.height} pixels, {prepared}")
    if isinstance(entry.get("points"), int) and facts.points is not None and entry["points"] != facts.points:
        warnings.append(f"{points_path(image)}: {facts.points} points, prepared with {entry['points']}")
    states = {"images": _image_state(image, facts, entry, warnings)}
    states |= _fit_states(image, facts, quick, errors, warnings)
    return facts._replace(errors=tuple(errors), warnings=tuple(warnings), states=states)


def _image_state(image: Path, facts: ImageFacts, entry: Mapping[str, Any], warnings: list[str]) -> str:
    annotated = entry.get("points", None if facts.split == "test" else 0) is not None
    if not image.exists() or (annotated and not points_path(image).exists()):
        return "missing"
    if facts.jpeg_problem or facts.points_problem:
        return "failed"
    source, made_from = Path(str(entry.get("source", image))), entry.get("made_from")
    raw = made_from.get("raw_files") if isinstance(made_from, dict) else None
    with contextlib.suppress(OSError, ValueError):  # a raw image that is gone, or whose name is none
        stat = source.stat()
        if isinstance(raw, list) and raw and raw[0] != [stat.st_size, stat.st_mtime_ns]:
            warnings.append(f"{image}: {source} has changed since")
            return "stale"
    return "done"


def _fit_states(image: Path, facts: ImageFacts, quick: bool, errors: list[str], warnings: list[str]) -> dict[str, str]:
    """States of the fitted Gaussians and the stored kernel of an image; what is wrong with them is added to the lists."""
    path, annotations = gaussians_path(image), None
    states = dict.fromkeys(("Gaussians", "cleaned", "kernels"), "missing")
    if not path.exists() and not kernel_path(image).exists():
        return states
    try:
        gaussians, (points, _, *shape) = Gaussians2D.load(path), load_annotations(image)
        annotations = points, *shape
    except (OSError, ValueError) as error:
        errors.append(one_line(error))
        if path.exists():
            states["Gaussians"] = "stale" if isinstance(error, OtherPointsError) else "failed"
    else:
        wrong = [] if quick else _wrong_gaussians(image, gaussians.params.numpy(), facts, warnings)
        errors += wrong
        states["Gaussians"] = "failed" if wrong else "done"
        axes = gaussians.scales.numpy()
        if not (axes.max(axis=1) > _DISTORTED * axes.min(axis=1)).any():
            states["cleaned"] = "done"
    states["kernels"], reason = _kernel_state(image, annotations, quick)
    errors += [reason] if reason and annotations else []
    return states


def _wrong_gaussians(image: Path, params: np.ndarray, facts: ImageFacts, warnings: list[str]) -> list[str]:
    """Errors about the numbers [N, 8] of fitted Gaussians; a warning about those that training replaces."""
    path, longest = gaussians_path(image), math.hypot(facts.height or math.inf, facts.width or math.inf)
    rest, scales = np.delete(params, (2, 3), axis=1), params[:, 2:4]
    if lost := np.isnan(scales).any(axis=1).sum():
        instead = "training takes a sixth of the neighbour distance instead"
        warnings.append(f"{path}: {lost} of {len(scales)} scales are NaN; {instead}")
    odd = ~np.isfinite(rest).all(axis=1) | ((scales < _MIN_SCALE) | (scales > longest)).any(axis=1)
    if not odd.any():
        return []
    wanted = f"expected finite numbers and scales from 1 to {longest:.0f} pixels"
    row = f"{odd.sum()} Gaussians as in row {odd.argmax()}: {params[odd.argmax()].round(3).tolist()}, {wanted}"
    return [f"{path}: {row}; delete it and run {fit_command(image.parent)}"]


def _kernel_state(image: Path, annotations: Sequence[np.ndarray] | None, quick: bool) -> tuple[str, str]:
    """State of the stored kernel and why; ``annotations``: points, scales and rotations, None where they cannot be read."""
    path, remedy = kernel_path(image), f"delete it and run {kernel_command(image.parent)}"
    if not path.exists():
        return "missing", ""
    try:
        stored = None if quick else load_kernel(path)
    except (OSError, ValueError) as error:
        return "failed", one_line(error)
    attributes = stored.attributes if stored else read_attributes(path)
    if attributes is None:
        return "failed", f"{path}: not a readable kernel; {remedy}"
    if annotations is None or attributes.get("params_hash") != params_hash(*annotations):
        return "stale", f"{path}: was built from other Gaussians; {remedy}"
    if stored:
        rows, cells = stored.kernel.shape
        sums = np.bincount(stored.kernel.col_indices().numpy(), stored.kernel.values().numpy(), minlength=cells)
        worst = sums[np.abs(sums - 1).argmax()]
        if rows != len(annotations[0]) + 1 or abs(worst - 1) > _COLUMN_SUM:
            expected = f"expected {len(annotations[0]) + 1} and 1"
            return "failed", f"{path}: {rows} rows, shares of a cell add up to {worst:.3f}, {expected}; {remedy}"
    return "done", ""


def stage_rows(facts: Sequence[ImageFacts], root: Path) -> list[dict[str, Any]]:
    """A row for each split and stage: counts of the states."""
    rows, lost = [], lost_images(root)
    for split in SPLITS:
        found = [fact.states for fact in facts if fact.split == split]
        found += [{"images": "missing"} for name in lost if name.startswith(f"{split}/")]
        fitted = split == "train" or (root / split / "gs_params").is_dir()
        for stage in ("images", *(("Gaussians", "cleaned", "kernels") if fitted else ())) if found else ():
            states = [states[stage] for states in found if stage in states]
            rows.append({"split": split, "stage": stage, **{state: states.count(state) for state in STATES}})
    return rows


def data_status(root: Path, runs: Path, facts: Sequence[ImageFacts] | None = None) -> dict[str, Any]:
    """``data_dir``; ``stages``, a row for each split and stage; ``trouble``; ``runs`` on these data; the ``next`` command.

    ``facts`` None: those of a quick look. Raises ``FileNotFoundError`` for a folder that does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check --data-dir (preprocess_dataset_*.py writes it)")
    if facts is None:
        with contextlib.suppress(FileNotFoundError):  # not even one image is there
            facts = [check_image(root, True, item) for item in find_images(root)]
    stages = stage_rows(facts or (), root)
    trouble = [line for fact in facts or () for line in (*fact.all_errors, *fact.warnings)]
    folders = {path.parent for pattern in ("", "*/", "*/*/") for path in runs.glob(f"{pattern}config.yml")}
    found = [entry for folder in sorted(folders) if (entry := _run(folder))]  # as deep as scripts nest them
    on_these = [entry for entry in found if Path(entry.pop("data_dir")).resolve() == root.resolve()]
    status = {"data_dir": str(root), "stages": stages, "trouble": trouble, "runs": on_these}
    return {**status, "other_runs": len(found) - len(on_these), "next": _next(root, stages, on_these)}


def _run(path: Path) -> dict[str, Any] | None:
    """What a run's folder tells, or None where it is no run's."""
    folder = RunFolder(path)
    try:
        options, progress = folder.options(), folder.progress()
        epochs, data = progress["epochs"] or int(options["epochs"]), os.fspath(options["data_dir"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    done, who, best = progress["done"] or 0, lock_holder(path), folder.best()
    if who:
        state = f"running ({who})"
    elif done >= epochs:
        state = "done"
    else:
        state = "failed" if any((path / "trouble").glob("epoch*_batch.pt")) else "interrupted"
    results = []  # of test.py, with the best model that is there now
    if folder.best_path.is_file() and (summaries := sorted(path.glob("**/summary.json"))):
        sha256 = file_hash(folder.best_path)
        results = [str(path.parent) for path in summaries if read_json(path, {}).get("weights_sha256") == sha256]
    run = {"folder": str(path), "data_dir": data, "state": state, "epochs_done": done, "epochs": epochs}
    best = {"epoch": best["epoch"], "mae": best["val_mae"], "mse": best["val_mse"]} if best else None
    return {**run, "best": best, "results": results}


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


def print_status(status: Mapping[str, Any]) -> None:
    """Print what ``data_status`` found, but for the trouble: stages, runs, the next command."""
    print(status["data_dir"])
    for row in ({"split": "split", "stage": "stage", **{state: state for state in STATES}}, *status["stages"]):
        print(f"{row['split']:<7}{row['stage']:<12}" + "".join(f"{row[state]:>9}" for state in STATES))
    for run in status["runs"]:
        best = "best MAE {mae:.3f}, MSE {mse:.3f} (epoch {epoch})" if run["best"] else "no best model"
        best = best.format(**run["best"] or {})
        results = f"; results: {', '.join(run['results'])}" if run["results"] else ""
        print(f"run {run['folder']}: {run['state']}, {run['epochs_done']} of {run['epochs']} epochs, {best}{results}")
    if status["other_runs"]:
        print(f"{status['other_runs']} more runs, on other data")
    print(f"next: {status['next']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, print and write the report."""
    parser = make_parser("Check a prepared data set and the runs on it, and name the command that comes next.")
    parser.add_argument("--data-dir", "--root-path", type=Path, required=True, metavar="P", help="prepared data set")
    parser.add_argument("--dataset", choices=DATASETS, help="what the data are (default: what the report says)")
    parser.add_argument(
        "--crop-size", type=number(int, 8), help="of training (default: the data set's or the report's)"
    )
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of training runs")
    parser.add_argument("--quick", action="store_true", help="decode and write nothing: stages, runs and what is next")
    parser.add_argument("--json", action="store_true", help="print the quick look as JSON")
    arguments = parse_arguments(parser, argv)
    root = arguments.data_dir
    if arguments.quick or arguments.json:
        status = data_status(root, arguments.runs)
        for line in () if arguments.json else status["trouble"]:
            warn(line)
        print(json.dumps(status, indent=1)) if arguments.json else print_status(status)
        return 0
    recorded = read_report(root)
    dataset = arguments.dataset or recorded.get("dataset")
    crop_size = arguments.crop_size or CROP_SIZES.get(dataset) or recorded.get("crop_size") or 512
    outcomes = list(
        for_each(partial(check_image, root, False), find_images(root), arguments.workers, "check", threads=True)
    )
    facts, errors = ([one[part] for one in outcomes if one[part] is not None] for part in (1, 2))
    report = summarise(root, dataset, crop_size, facts, errors)
    for error in report["errors"]:
        print(f"error: {error}", file=sys.stderr)
    print_report(report)
    print_status(data_status(root, arguments.runs, facts))
    fits, kernels = (sum(one.states[stage] != "missing" for one in facts) for stage in ("Gaussians", "kernels"))
    numbers = f"{len(report['errors'])} errors, {len(report['warnings'])} warnings"
    print(f"checked {len(facts)} images, {fits} files of Gaussians, {kernels} kernels: {numbers}")
    write_json(root / REPORT, report)
    return EXIT_FAILED if report["errors"] else 0


if __name__ == "__main__":
    run_script(main)
