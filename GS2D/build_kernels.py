"""Compute the transport kernel of every fitted image once: gs_params/*.h5 -> kernels/*.h5.

python GS2D/build_kernels.py [--config FILE.yml] [--root-path P | --gs-dir P]
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from GS2D.fit_dataset import parse_folder_options
from GS2D.kernel import StoredKernel, cell_grid, params_hash, read_attributes, save_kernel, transport_kernel
from GS2D.options import add_kernel_options, check_kernel_options, kernel_options
from GS2D.points import load_annotations
from utils.cli import default_workers, for_each, report_failures, run_script
from utils.config import make_parser, number
from utils.files import gaussians_path, kernel_path, list_images, make_folder
from utils.images import image_size
from utils.lock import lock_folder


class KernelJob(NamedTuple):
    """One image whose kernel is built from its Gaussians with the parameters of ``GS2D.kernel.transport_kernel``."""

    image: Path
    parameters: dict[str, Any]


def build_kernel(job: KernelJob) -> int | None:
    """Build and store one kernel -> its number of stored shares, or None where the stored one is up to date."""
    torch.set_num_threads(1)  # one image is one core's work, and sums do not depend on the number of threads
    points, _, scales, rotations = load_annotations(job.image)
    size, output = image_size(job.image), kernel_path(job.image)
    grid = cell_grid(size, job.parameters["stride"])
    attributes = {**job.parameters, "params_hash": params_hash(points, scales, rotations)}
    stored = read_attributes(output) or {}
    if all(np.array_equal(stored.get(name), value) for name, value in {**attributes, "grid": grid}.items()):
        return None
    kernel = transport_kernel(points, scales, rotations, size, **job.parameters)
    save_kernel(output, StoredKernel(kernel, grid, attributes))
    return len(kernel.values())


def main() -> int:
    """Build what is missing or stale."""
    parser = make_parser("Compute the transport kernels of whole images, once, into kernels/*.h5.")
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="images at the same time")
    add_kernel_options(parser.add_argument)
    arguments, folders = parse_folder_options(parser)
    check_kernel_options(parser, arguments)
    jobs = []
    with contextlib.ExitStack() as locks:
        for folder in folders:
            images = [image for image in list_images(folder.parent) if gaussians_path(image).exists()]
            locks.enter_context(lock_folder(make_folder(kernel_path(folder.parent / "any").parent)))
            jobs += [KernelJob(image, kernel_options(arguments)) for image in images]
        outcomes = list(for_each(build_kernel, jobs, arguments.workers, "kernels", threads=True))
    built = [outcome.result for outcome in outcomes if outcome.result is not None]
    current = sum(outcome.error is None for outcome in outcomes) - len(built)
    print(f"{len(built)} kernels built ({sum(built):,} stored shares), {current} were up to date")
    return report_failures(outcomes)


if __name__ == "__main__":
    run_script(main)
