"""Clean distorted Gaussians: wherever one axis is more than 1.5 times the other, both become the shorter one.

    python GS2D/process_gaussians.py [--config FILE.yml] [--root-path P | --gs-dir P]

What was fitted stays in the same file, as dataset ``fitted``, and is what every run cleans: the result of a ratio does not
depend on the ratios before it, and a second run changes nothing.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from GS2D.fit_dataset import parse_folder_options
from GS2D.gaussians import Gaussians2D, read_file
from utils.cli import for_each, report_failures, run_script
from utils.config import make_parser, number
from utils.lock import lock_folder


def clean(params: np.ndarray | Tensor, max_ratio: float = 1.5) -> tuple[np.ndarray | Tensor, int]:
    """Make Gaussians round whose axes differ by more than ``max_ratio``.

    params [N, 8] as in the file (column 2, 3: standard deviations) -> (the cleaned copy, how many changed). The rotation is
    kept; rows with NaN scales are left alone. Raises ``ValueError`` for a ratio below 1.
    """
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio: {max_ratio}, must be at least 1 (1 makes every Gaussian round)")
    cleaned = torch.as_tensor(params).detach().cpu().numpy().copy()
    if cleaned.size == 0:
        return params, 0
    short, long = cleaned[:, 2:4].min(axis=1), cleaned[:, 2:4].max(axis=1)
    distorted = long > max_ratio * short
    cleaned[distorted, 2:4] = short[distorted, None]
    return torch.from_numpy(cleaned) if isinstance(params, Tensor) else cleaned, int(distorted.sum())


class Cleaned(NamedTuple):
    """What became of one file."""

    gaussians: int
    distorted: int
    changed: bool
    lost: int  # Gaussians with NaN scales


def clean_file(path: Path, max_ratio: float = 1.5) -> Cleaned:
    """Clean what was fitted in one ``*_gs_params.h5``, in place."""
    gaussians, fitted, attributes = read_file(path)
    original = gaussians if fitted is None else fitted
    params, distorted = clean(original.params, max_ratio)
    changed = not np.array_equal(params, gaussians.params, equal_nan=True)
    if changed:
        fitted = original if distorted else None
        Gaussians2D.from_params(params).save(path, fitted=fitted, attributes=attributes)
    return Cleaned(len(gaussians), distorted, changed, int(torch.isnan(gaussians.scales).any(dim=1).sum()))


def main() -> int:
    """Clean every file of the configured data set."""
    parser = make_parser("Clean distorted Gaussians in gs_params/*.h5; the fitted ones stay in the files as 'fitted'.")
    parser.add_argument("--max-ratio", type=number(float, 1), default=1.5, help="longest over shortest axis that stays")
    arguments, folders = parse_folder_options(parser)
    files = [path for folder in folders for path in sorted(folder.glob("[!.]*_gs_params.h5"))]
    with contextlib.ExitStack() as locks:
        for folder in folders:
            locks.enter_context(lock_folder(folder))
        outcomes = list(for_each(lambda path: clean_file(path, arguments.max_ratio), files, 1, "clean"))
    results = [outcome.result for outcome in outcomes if outcome.result]
    for path, result, _ in outcomes:
        if result and result.lost:
            what = f"{result.lost} of {result.gaussians} Gaussians have NaN scales"
            print(f"{path}: {what}; training takes a sixth of the distance")
    total, distorted, changed = (sum(result[i] for result in results) for i in range(3))
    done = f"{changed} files changed" if changed else "nothing to do"
    print(f"{len(results)} files, {total} Gaussians: {distorted} were fitted distorted; {done}")
    return report_failures(outcomes)


if __name__ == "__main__":
    run_script(main)
