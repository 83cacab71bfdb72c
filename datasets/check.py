"""Check a prepared data set from its files alone, before it costs training time.

    python -m datasets.check --data-dir P [--dataset D]

Decodes every image, and reads every annotation, every file of fitted Gaussians and every stored kernel. Prints errors, which
stop training or spoil it (exit code 1), warnings, the table of the preprocessing and that of the stages; P/dataset_report.json holds all of it.
"""

from __future__ import annotations

import math
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
    save_report,
    summarise,
)
from datasets.audit.stages import look, print_stages
from datasets.raw.preprocess import is_grey
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import load_kernel, params_hash
from GS2D.prepared import load_annotations
from utils.cli import EXIT_FAILED, default_workers, for_each, one_line, run_script
from utils.config import make_parser, number, parse_arguments
from utils.dataset_report import DATASETS, read_report
from utils.files import gaussians_path, kernel_path, points_path
from utils.images import load_image

_MIN_SCALE = 1 - 1e-4  # the fit adds 1 to what is never negative; a little for rounding
_COLUMN_SUM = 1e-3  # shares below 1e-7 are not stored


class Item(NamedTuple):
    """One image and what the record says of it."""

    root: Path
    image: Path
    entry: Mapping[str, Any]


class Finding(NamedTuple):
    """What became of one image."""

    facts: ImageFacts
    warnings: tuple[str, ...]
    fitted: bool
    has_kernel: bool


def check_image(item: Item) -> Finding:
    """Decode an image and check what belongs to it."""
    root, image, entry = item
    size, problem = {}, None
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
    fitted, has_kernel = gaussians_path(image).exists(), kernel_path(image).exists()
    if fitted or has_kernel:
        wrong, odd = _check_fit(image, facts, has_kernel)
        errors += wrong
        warnings += odd
    return Finding(facts._replace(errors=tuple(errors)), tuple(warnings), fitted, has_kernel)


def _check_fit(image: Path, facts: ImageFacts, has_kernel: bool) -> tuple[list[str], list[str]]:
    """Errors and warnings about the fitted Gaussians and the stored kernel of an image."""
    path = gaussians_path(image)
    remedy = f"delete it and run python 2dgs_counting_1gs_gsplat.py --root-path {image.parents[1]}"
    try:
        gaussians = Gaussians2D.load(path)
        points, _, scales, rotations = load_annotations(image)
    except (OSError, ValueError) as error:
        return [one_line(error)], []
    errors, warnings = [], []
    params = gaussians.params.numpy()
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
    if has_kernel:
        path = kernel_path(image)
        remedy = f"delete it and run python GS2D/build_kernels.py --root-path {image.parents[1]}"
        try:
            kernel = load_kernel(path)
        except (OSError, ValueError) as error:
            return [*errors, one_line(error)], warnings
        if kernel.attributes.get("params_hash") != params_hash(points, scales, rotations):
            errors.append(f"{path}: was built from other Gaussians; {remedy}")
        else:
            reason = _kernel_damage(kernel.kernel, len(points))
            errors += [f"{path}: {reason}; {remedy}"] if reason else []
    return errors, warnings


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
    train = [finding for finding in findings if finding.facts.split == "train"]
    for what, script, done in (
        ("fitted Gaussians", "2dgs_counting_1gs_gsplat.py", [finding.fitted for finding in train]),
        ("a stored kernel", "GS2D/build_kernels.py", [finding.has_kernel for finding in train]),
    ):
        if any(done) and not all(done):
            count = len(done) - sum(done)
            yield f"{root / 'train'}: {count} of {len(done)} images have no {what.removeprefix('a ')}; run {script}"
    images = [root / finding.facts.name for finding in findings]
    owned = {path(image) for image in images for path in (points_path, gaussians_path, kernel_path)}
    for split in SPLITS:
        for pattern in ("[!.]*.npy", "gs_params/[!.]*_gs_params.h5", "kernels/[!.]*_kernel.h5"):
            strangers = [path for path in sorted((root / split).glob(pattern)) if path not in owned]
            if strangers:
                count = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
                yield f"{strangers[0]}{count}: belong to no image; remove them"


def main() -> int:
    """Check everything, print and write the report."""
    parser = make_parser("Check a prepared data set: images, annotations, fitted Gaussians and stored kernels.")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="P", help="prepared data set")
    parser.add_argument("--dataset", choices=DATASETS, help="what the data are (default: what the report says)")
    parser.add_argument(
        "--crop-size", type=number(int, 8), help="of training (default: the data set's or the report's)"
    )
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    arguments = parse_arguments(parser)
    root = arguments.data_dir
    record = read_record(root)
    said = read_report(root)
    dataset = arguments.dataset or said.get("dataset")
    crop_size = arguments.crop_size or CROP_SIZES.get(dataset) or said.get("crop_size") or 512
    items = [Item(root, path, record.get(path.relative_to(root).as_posix(), {})) for path in find_images(root)]
    outcomes = list(for_each(check_image, items, arguments.workers, "check"))
    findings = [outcome.result for outcome in outcomes if outcome.error is None]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    warnings = [line for finding in findings for line in finding.warnings] + list(_incomplete(root, findings))
    facts = [finding.facts for finding in findings]
    report = summarise(root, dataset, crop_size, facts, errors, warnings)
    for error in report["errors"]:
        print(f"error: {error}", file=sys.stderr)
    print_report(report)
    print_stages(look(root, Path("runs"))["stages"])
    fitted, kernels = (sum(finding[i] for finding in findings) for i in (2, 3))
    numbers = f"{len(report['errors'])} errors, {len(report['warnings'])} warnings"
    print(f"checked {len(items)} images, {fitted} files of Gaussians, {kernels} kernels: {numbers}")
    save_report(root, report)
    return EXIT_FAILED if report["errors"] else 0


if __name__ == "__main__":
    run_script(main)
