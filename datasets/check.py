"""What of a prepared data set and of the runs on it is there, what is wrong, and the command that comes next.

    python -m datasets.check --data-dir P [--dataset D] [--runs DIR]
    python -m datasets.check --data-dir P --quick [--json]

Decodes every image and reads every annotation and every file of fitted Gaussians; a kernel counts by what it says of itself, an
evaluation by the hash of its weights. Prints errors, which stop training or spoil it (exit code 1), warnings, a row for each
split, the runs and the next command; P/dataset_report.json holds all but the last two. ``--quick`` decodes nothing, writes
nothing, and its errors are warnings.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets.report import CROP_SIZES, ImageFacts, find_images, look_at, lost_images, print_report, summarise
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import kernel_command, params_hash, read_attributes
from GS2D.points import OtherPointsError, fit_command, load_annotations
from utils.cli import EXIT_FAILED, default_workers, for_each, one_line, run_script
from utils.config import make_parser, number, parse_arguments
from utils.files import (
    DATASETS,
    REPORT,
    SPLITS,
    file_hash,
    gaussians_path,
    kernel_path,
    read_json,
    read_report,
    write_json,
)
from utils.lock import lock_holder
from utils.training.run_folder import RunFolder

STATES = ("done", "missing", "stale", "failed")
_DISTORTED = 1.5 + 1e-5  # longest over shortest axis that cleaning leaves by default, and rounding


def check_image(root: Path, decode: bool, item: tuple[Path, Mapping[str, Any]]) -> ImageFacts:
    """What ``look_at`` finds, the state of each stage, and what is wrong with the files of each."""
    image, entry = item
    facts = look_at(root, image, entry, decode)
    facts.states = {"images": _image_state(image, entry, facts)}
    facts.states |= dict.fromkeys(("Gaussians", "cleaned", "kernels"), "missing")
    path, kernel, built_from = gaussians_path(image), kernel_path(image), None
    try:
        if path.exists() or kernel.exists():
            scales, (points, _, *shapes) = Gaussians2D.load(path).scales, load_annotations(image)
            built_from, facts.states["Gaussians"] = params_hash(points, *shapes), "done"
            if not (scales.amax(dim=1) > _DISTORTED * scales.amin(dim=1)).any():
                facts.states["cleaned"] = "done"
    except (OSError, ValueError) as error:
        facts.errors += {one_line(error)}.difference(facts.errors)
        if path.exists():
            facts.states["Gaussians"] = "stale" if isinstance(error, OtherPointsError) else "failed"
    if kernel.exists():
        attributes, remedy = read_attributes(kernel), f"delete it and run {kernel_command(image.parent)}"
        if attributes is None:
            facts.states["kernels"] = "failed"
            facts.errors.append(f"{kernel}: not a readable kernel; {remedy}")
        elif built_from and attributes.get("params_hash") == built_from:
            facts.states["kernels"] = "done"
        else:
            facts.states["kernels"] = "stale"
            facts.errors.append(f"{kernel}: was not built from the Gaussians that are there; {remedy}")
    return facts


def _image_state(image: Path, entry: Mapping[str, Any], facts: ImageFacts) -> str:
    if facts.jpeg_problem or (facts.annotated and facts.points is None):
        return "failed"
    if not facts.annotated and entry.get("points", None if facts.split == "test" else 0) is not None:
        return "missing"
    with contextlib.suppress(OSError, ValueError):  # a raw image that is gone, or whose name is none
        stat = Path(entry["source"]).stat() if entry else None
        if stat and entry["made_from"]["raw_files"][:1] != [[stat.st_size, stat.st_mtime_ns]]:
            facts.warnings.append(f"{image}: {entry['source']} has changed since")
            return "stale"
    return "done"


def stage_rows(facts: Sequence[ImageFacts], root: Path) -> list[dict[str, Any]]:
    """A row for each split and stage: how many images are in each of the ``STATES``."""
    rows, lost = [], [ImageFacts(name, states={"images": "missing"}) for name in lost_images(root)]
    for split in SPLITS:
        states = [fact.states for fact in (*facts, *lost) if fact.split == split]
        fitted = split == "train" or (root / split / "gs_params").is_dir()
        for stage in ("images", *(("Gaussians", "cleaned", "kernels") if fitted else ())) if states else ():
            found = [of_image.get(stage) for of_image in states]
            rows.append({"split": split, "stage": stage, **{state: found.count(state) for state in STATES}})
    return rows


def find_runs(folder: Path, root: Path) -> tuple[list[dict[str, Any]], int]:
    """What the runs in ``folder`` that are on the data ``root`` say, and the number of other runs."""
    configs = [path for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}config.yml")]
    runs = [run for path in sorted(configs) if (run := _read_run(path.parent))]  # as deep as scripts nest them
    on_these = [run for run in runs if Path(run.pop("data_dir")).resolve() == root.resolve()]
    return on_these, len(runs) - len(on_these)


def _read_run(path: Path) -> dict[str, Any] | None:
    """What a run's folder tells, or None where it is no run's."""
    folder = RunFolder(path)
    try:
        options, progress, best = folder.options(), folder.progress(), folder.best()
        data, epochs, done = str(options["data_dir"]), progress["epochs"] or options["epochs"], progress["done"] or 0
        state = "done" if done >= epochs else "interrupted"
        best = best and {"epoch": best["epoch"], "mae": best["val_mae"], "mse": best["val_mse"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if holder := lock_holder(path):
        state = f"running ({holder})"
    results = []  # of test.py, with the best model that is there now
    if summaries := sorted(path.glob("**/summary.json")):
        sha256 = file_hash(folder.best_path) if best else None
        results = [str(path.parent) for path in summaries if read_json(path, {}).get("weights_sha256", "") == sha256]
    run = {"folder": str(path), "data_dir": data, "state": state, "epochs_done": done, "epochs": epochs}
    return {**run, "best": best, "results": results}


def next_command(root: Path, stages: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """The first command that is due, in the order of the stages."""

    def count(stage: str, *states: str) -> int:
        return sum(row[state] for row in stages if row["stage"] == stage for state in states)

    fitted = [row["split"] for row in stages if row["stage"] == "Gaussians"]
    splits = "" if fitted == ["train"] else f" --splits {' '.join(fitted)}"
    bad_kernels = count("kernels", "stale", "failed") or (count("kernels", "done") and count("kernels", "missing"))
    interrupted = [run["folder"] for run in runs if run["state"] == "interrupted"]
    untested = [run["folder"] for run in runs if run["state"] == "done" and run["best"] and not run["results"]]
    if not stages or count("images", "missing", "stale", "failed"):
        return f"python preprocess_dataset_*.py --input-dataset-path RAW --output-dataset-path {root}"
    if count("Gaussians", "stale", "failed"):
        return f"delete the stale and failed files, then {fit_command(root / 'train')}"
    if count("Gaussians", "missing"):
        return fit_command(root / "train") + splits
    if count("cleaned", "missing"):
        return f"python GS2D/process_gaussians.py --root-path {root}"
    if bad_kernels:
        return kernel_command(root / "train")
    if interrupted:
        return f"python train_gs.py --config {interrupted[0]}/config.yml"
    if untested:
        return f"python test.py --save-path {untested[0]} --data-dir {root} --out {untested[0]}/test"
    if any(run["state"].startswith("running") for run in runs):
        return "wait for the run that is under way"
    return "nothing; every stage is done" if runs else f"python train_gs.py --data-dir {root}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, print and write the report."""
    parser = make_parser("Check a prepared data set and the runs on it, and name the command that comes next.")
    parser.add_argument("--data-dir", "--root-path", type=Path, required=True, metavar="P", help="prepared data set")
    parser.add_argument("--dataset", choices=DATASETS, help="what the data are (default: what the report says)")
    crop_size = "of training (default: the data set's or the report's)"
    parser.add_argument("--crop-size", type=number(int, 8), help=crop_size)
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of training runs")
    parser.add_argument("--quick", action="store_true", help="decode and write nothing")
    parser.add_argument("--json", action="store_true", help="print the quick look as JSON")
    arguments = parse_arguments(parser, argv)
    root, quick = arguments.data_dir, arguments.quick or arguments.json
    recorded = read_report(root)
    dataset = arguments.dataset or recorded.get("dataset")
    crop_size = arguments.crop_size or CROP_SIZES.get(dataset) or recorded.get("crop_size") or 512
    check = partial(check_image, root, not quick)
    outcomes = list(for_each(check, find_images(root), arguments.workers, "check", threads=True))
    facts, failures = ([one[part] for one in outcomes if one[part] is not None] for part in (1, 2))
    report, stages = summarise(root, dataset, crop_size, facts, failures), stage_rows(facts, root)
    runs, others = find_runs(arguments.runs, root)
    following = next_command(root, stages, runs)
    if arguments.json:
        trouble = [*report["errors"], *report["warnings"]]
        status = {"data_dir": str(root), "stages": stages, "trouble": trouble, "runs": runs, "other_runs": others}
        print(json.dumps({**status, "next": following}, indent=1))
        return 0
    done: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for row in stages:
        done[row["split"]][row["stage"]] = f"{row['done']}/{sum(row[state] for state in STATES)}"
    print_report(report, done, "warning" if quick else "error")
    for run in runs:
        best = "best MAE {mae:.3f}, MSE {mse:.3f} (epoch {epoch})" if run["best"] else "no best model"
        best = best.format(**run["best"] or {})
        results = f"; results: {', '.join(run['results'])}" if run["results"] else ""
        print(f"run {run['folder']}: {run['state']}, {run['epochs_done']} of {run['epochs']} epochs, {best}{results}")
    if others:
        print(f"{others} more runs, on other data")
    print(f"checked {len(facts)} images: {len(report['errors'])} errors, {len(report['warnings'])} warnings")
    print(f"next: {following}")
    if quick:
        return 0
    write_json(root / REPORT, report)
    return EXIT_FAILED if report["errors"] else 0


if __name__ == "__main__":
    run_script(main)
