"""What of a prepared data set and of the runs on it is there, what is wrong, and the command that comes next.

    python -m datasets.check --data-dir P [--dataset D] [--runs DIR]
    python -m datasets.check --data-dir P --quick [--json]

Decodes every image, and reads every annotation, every file of fitted Gaussians and every stored kernel. Prints errors, which
stop training or spoil it (exit code 1), warnings, the table of the preprocessing, that of the stages and the runs;
P/dataset_report.json holds all of it. ``--quick`` decodes nothing and writes nothing: a kernel counts by what it says of
itself, an evaluation by the hash of its weights. ``python -m datasets.audit.stages`` and ``python -m utils.status`` are other
names of that.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from datasets.audit.report import (
    CROP_SIZES,
    SPLITS,
    ImageFacts,
    find_images,
    look_at,
    print_report,
    read_record,
    summarise,
)
from datasets.raw.preprocess import is_grey
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import load_kernel, params_hash, read_attributes
from GS2D.prepared import OtherPointsError, load_annotations
from utils.cli import EXIT_FAILED, default_workers, for_each, one_line, run_script
from utils.config import make_parser, number, parse_arguments
from utils.dataset_report import DATASETS, REPORT, read_report
from utils.files import file_hash, gaussians_path, kernel_path, points_path, read_json, write_json
from utils.images import load_image
from utils.lock import holder
from utils.training.run_folder import RunFolder

STATES = ("done", "missing", "stale", "failed")
State = tuple[str, str]  # one of STATES, and of the last two the reason: a line that names the file
_MISSING, _DONE = ("missing", ""), ("done", "")
_MIN_SCALE = 1 - 1e-4  # the fit adds 1 to what is never negative; a little for rounding
_COLUMN_SUM = 1e-3  # shares below 1e-7 are not stored
_DISTORTED = 1.5  # longest over shortest axis that cleaning leaves by default
_ROUNDING = 1e-5
_SHOWN = 5  # files named for each kind of trouble


class Item(NamedTuple):
    """One image and what the record says of it."""

    root: Path
    image: Path
    entry: Mapping[str, Any]
    annotated: bool  # whether its split is
    quick: bool


class Finding(NamedTuple):
    """What became of one image."""

    facts: ImageFacts
    states: Mapping[str, State]  # of each stage
    warnings: tuple[str, ...]


def list_items(root: Path, quick: bool) -> list[Item]:
    """The images of all splits. Raises ``FileNotFoundError`` where there is none at all."""
    record, images = read_record(root), find_images(root)
    annotated = {split: split != "test" or any((root / split).glob("*.npy")) for split in SPLITS}
    entries = (record.get(image.relative_to(root).as_posix(), {}) for image in images)
    return [Item(root, image, entry, annotated[image.parent.name], quick) for image, entry in zip(images, entries)]


def check_image(item: Item) -> Finding:
    """Decode an image, unless a quick look is asked for, and check what belongs to it."""
    root, image, entry, annotated, quick = item
    size, problem = {}, None
    if not quick:
        try:
            pixels = load_image(image)
            size = {"height": pixels.shape[0], "width": pixels.shape[1], "grey": is_grey(pixels)}
        except (OSError, ValueError) as error:
            problem = one_line(error)
    facts = look_at(root, image, {**entry, **size}, problem)
    errors, warnings = list(facts.errors), []
    recorded = entry.get("height"), entry.get("width")
    if size and None not in recorded and recorded != (size["height"], size["width"]):
        errors.append(
            f"{image}: {size['width']} x {size['height']} pixels, prepared as {recorded[1]} x {recorded[0]}; run "
            "preprocess_dataset_*.py again"
        )
    if isinstance(entry.get("points"), int) and facts.points is not None and entry["points"] != facts.points:
        warnings.append(f"{points_path(image)}: {facts.points} points, prepared with {entry['points']}")
    states, wrong, odd = _check_fit(image, facts, quick)
    states = {"images": _image_state(image, facts, entry, annotated), **states}
    return Finding(facts._replace(errors=(*errors, *wrong)), states, (*warnings, *odd))


def _image_state(image: Path, facts: ImageFacts, entry: Mapping[str, Any], annotated: bool) -> State:
    if not image.exists() or (annotated and not points_path(image).exists() and entry.get("points", 0) is not None):
        return _MISSING
    if reason := facts.jpeg_problem or facts.points_problem:
        return "failed", reason
    source, made_from = Path(str(entry.get("source", image))), entry.get("made_from")
    raw = made_from.get("raw_files") if isinstance(made_from, dict) else None
    with contextlib.suppress(OSError, ValueError):  # a raw image that is gone, or whose name is none
        stat = source.stat()
        if isinstance(raw, list) and raw and raw[0] != [stat.st_size, stat.st_mtime_ns]:
            return "stale", f"{image}: {source} has changed since"
    return _DONE


def _check_fit(image: Path, facts: ImageFacts, quick: bool) -> tuple[dict[str, State], list[str], list[str]]:
    """States, errors and warnings of the fitted Gaussians and the stored kernel of an image."""
    path = gaussians_path(image)
    if not path.exists() and not kernel_path(image).exists():
        return dict.fromkeys(("Gaussians", "cleaned", "kernels"), _MISSING), [], []
    try:
        gaussians = Gaussians2D.load(path)
        annotations = load_annotations(image)
    except (OSError, ValueError) as error:
        state = "stale" if isinstance(error, OtherPointsError) else "failed"
        fit = (state, one_line(error)) if path.exists() else _MISSING
        return {"Gaussians": fit, "cleaned": _MISSING, "kernels": _kernel(image, None, quick)}, [one_line(error)], []
    axes, errors, warnings = gaussians.scales.numpy(), [], []
    is_clean = not (axes.max(axis=1) > (_DISTORTED + _ROUNDING) * axes.min(axis=1)).any()
    if not quick:
        errors, warnings = _check_gaussians(path, gaussians.params.numpy(), facts, image.parents[1])
    points, _, *shape = annotations
    kernel = _kernel(image, (points, *shape), quick)
    states = {"Gaussians": ("failed", errors[0]) if errors else _DONE, "cleaned": _DONE if is_clean else _MISSING}
    return {**states, "kernels": kernel}, errors + [kernel[1]] * (kernel[1] != ""), warnings


def _check_gaussians(path: Path, params: np.ndarray, facts: ImageFacts, root: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings about the numbers [N, 8] of fitted Gaussians."""
    errors, warnings = [], []
    remedy = f"delete it and run python 2dgs_counting_1gs_gsplat.py --root-path {root}"
    lost = np.isnan(params[:, 2:4]).any(axis=1)
    if not np.isfinite(np.delete(params, (2, 3), axis=1)).all():
        errors.append(f"{path}: holds NaN or infinite values; {remedy}")
    if lost.any():
        warnings.append(
            f"{path}: {lost.sum()} of {len(lost)} scales are NaN; training takes a sixth of the neighbour distance instead"
        )
    longest = math.hypot(facts.height or math.inf, facts.width or math.inf)
    odd = ((params[:, 2:4] < _MIN_SCALE) | (params[:, 2:4] > longest)).any(axis=1)
    if odd.any():
        row = int(np.flatnonzero(odd)[0])
        errors.append(
            f"{path}: {odd.sum()} Gaussians have scales outside [1, {longest:.0f}] pixels, row {row} "
            f"{params[row, 2:4].tolist()}; {remedy}"
        )
    return errors, warnings


def _kernel(image: Path, annotations: Sequence[np.ndarray] | None, quick: bool) -> State:
    """State of the stored kernel; ``annotations`` are points, scales and rotations, None where they cannot be read."""
    path = kernel_path(image)
    if not path.exists():
        return _MISSING
    remedy = f"delete it and run python GS2D/build_kernels.py --root-path {image.parents[1]}"
    try:
        stored = None if quick else load_kernel(path)
    except (OSError, ValueError) as error:
        return "failed", one_line(error)
    attributes = stored.attributes if stored else read_attributes(path)
    if attributes is None:
        return "failed", f"{path}: not a readable kernel; {remedy}"
    if annotations is None or attributes.get("params_hash") != params_hash(*annotations):
        return "stale", f"{path}: was built from other Gaussians; {remedy}"
    reason = _kernel_damage(stored.kernel, len(annotations[0])) if stored else None
    return ("failed", f"{path}: {reason}; {remedy}") if reason else _DONE


def _kernel_damage(kernel: Tensor, points: int) -> str | None:
    """Why a stored kernel, which ``load_kernel`` found whole, is no transport plan of ``points`` annotations, if it is none."""
    if kernel.shape[0] != points + 1:
        return f"{kernel.shape[0]} rows instead of {points + 1}"
    sums = np.bincount(kernel.col_indices().numpy(), kernel.values().numpy(), minlength=kernel.shape[1])
    worst = np.abs(sums - 1).argmax()
    if abs(sums[worst] - 1) > _COLUMN_SUM:
        return f"the shares of a cell add up to {sums[worst]:.3f} instead of 1"
    return None


def _incomplete(root: Path, findings: Sequence[Finding]) -> Iterator[str]:
    """Warnings about stages that some images have behind them and others have not, and about files of no image."""
    for stage, what, script in (
        ("Gaussians", "fitted Gaussians", "2dgs_counting_1gs_gsplat.py"),
        ("kernels", "stored kernel", "GS2D/build_kernels.py"),
    ):
        lacking = [finding.states[stage] == _MISSING for finding in findings if finding.facts.split == "train"]
        if any(lacking) and not all(lacking):
            yield f"{root / 'train'}: {sum(lacking)} of {len(lacking)} images have no {what}; run {script}"
    images = [root / finding.facts.name for finding in findings]
    owned = {path(image) for image in images for path in (points_path, gaussians_path, kernel_path)}
    for split in SPLITS:
        for pattern in ("[!.]*.npy", "gs_params/[!.]*_gs_params.h5", "kernels/[!.]*_kernel.h5"):
            strangers = [path for path in sorted((root / split).glob(pattern)) if path not in owned]
            if strangers:
                count = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
                yield f"{strangers[0]}{count}: belong to no image; remove them"


def stage_rows(findings: Sequence[Finding], root: Path) -> list[dict[str, Any]]:
    """A row for each split and stage: counts of the states, and the reasons of what is stale or failed."""
    rows, lost = [], [name for name in read_record(root) if not (root / name).exists()]
    for split in SPLITS:
        found = [finding.states for finding in findings if finding.facts.split == split]
        found += [{"images": _MISSING} for name in lost if name.startswith(f"{split}/")]
        fitted = split == "train" or (root / split / "gs_params").is_dir()
        for stage in ("images", *(("Gaussians", "cleaned", "kernels") if fitted else ())) if found else ():
            states = [states[stage] for states in found if stage in states]
            row = {"split": split, "stage": stage}
            row |= {state: sum(one == state for one, _ in states) for state in STATES}
            rows.append(
                row | {f"{kind}_files": [reason for one, reason in states if one == kind] for kind in STATES[2:]}
            )
    return rows


def data_status(root: Path, runs: Path, findings: Sequence[Finding] | None = None) -> dict[str, Any]:
    """``data_dir``; ``stages``, a row for each split and stage; ``runs`` on these data; the ``next`` command.

    ``findings`` None: those of a quick look. Raises ``FileNotFoundError`` for a folder that does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check --data-dir (preprocess_dataset_*.py writes it)")
    if findings is None:
        with contextlib.suppress(FileNotFoundError):  # not even one image is there
            findings = [check_image(item) for item in list_items(root, quick=True)]
    stages = stage_rows(findings or (), root)
    found = [entry for folder in _run_folders(runs) if (entry := _run(folder))]
    on_these = [entry for entry in found if Path(entry.pop("data_dir")).resolve() == root.resolve()]
    status = {"data_dir": str(root), "stages": stages, "runs": on_these, "other_runs": len(found) - len(on_these)}
    return {**status, "next": _next(root, stages, on_these)}


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


def print_status(status: Mapping[str, Any]) -> None:
    """Print what ``data_status`` found: stages, trouble, runs, the next command."""
    print(f"{status['data_dir']}")
    print(f"{'split':<7}{'stage':<12}" + "".join(f"{state:>9}" for state in STATES))
    for row in status["stages"]:
        print(f"{row['split']:<7}{row['stage']:<12}" + "".join(f"{row[state]:>9}" for state in STATES))
    for state in STATES[2:]:
        lines = [line for row in status["stages"] for line in row[f"{state}_files"]]
        for line in lines[:_SHOWN]:
            print(f"{state}: {line}")
        if len(lines) > _SHOWN:
            print(f"{state}: and {len(lines) - _SHOWN} more")
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
    parser.add_argument("--json", action="store_true", help="print the quick look as JSON, with the names of all files")
    arguments = parse_arguments(parser, argv)
    root = arguments.data_dir
    if arguments.quick or arguments.json:
        status = data_status(root, arguments.runs)
        if arguments.json:
            print(json.dumps(status, indent=1))
        else:
            print_status(status)
        return 0
    said = read_report(root)
    dataset = arguments.dataset or said.get("dataset")
    crop_size = arguments.crop_size or CROP_SIZES.get(dataset) or said.get("crop_size") or 512
    outcomes = list(for_each(check_image, list_items(root, quick=False), arguments.workers, "check"))
    findings = [outcome.result for outcome in outcomes if outcome.error is None]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    warnings = [line for finding in findings for line in finding.warnings] + list(_incomplete(root, findings))
    facts = [finding.facts for finding in findings]
    report = summarise(root, dataset, crop_size, facts, errors, warnings)
    for error in report["errors"]:
        print(f"error: {error}", file=sys.stderr)
    print_report(report)
    print_status(data_status(root, arguments.runs, findings))
    fits, kernels = (sum(one.states[stage] != _MISSING for one in findings) for stage in ("Gaussians", "kernels"))
    numbers = f"{len(report['errors'])} errors, {len(report['warnings'])} warnings"
    print(f"checked {len(findings)} images, {fits} files of Gaussians, {kernels} kernels: {numbers}")
    write_json(root / REPORT, report)
    return EXIT_FAILED if report["errors"] else 0


if __name__ == "__main__":
    run_script(main)
