"""Look at an image of a prepared data set as GST sees it: annotations, Gaussians, rendering, transport kernel.

python GS2D/visualize.py data/UCF-Train-Val-Test/train/IMG_0001.jpg [--out FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch import Tensor

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import cell_grid, transport_kernel
from GS2D.options import STRIDE, add_kernel_options, check_kernel_options, kernel_options
from GS2D.points import load_annotations
from GS2D.rasterize import rasterize
from utils.cli import run_script
from utils.config import make_parser, parse_arguments
from utils.evaluation.figures import save_kernel_figure
from utils.files import gaussians_path, make_folder
from utils.images import load_image


class KernelSummary(NamedTuple):
    """What a transport kernel says of each of its h x w cells."""

    owner: np.ndarray  # [h, w]: the annotation that gets most of a cell's mass, -1 for the background
    background: np.ndarray  # [h, w]: the background's share, in [0, 1]
    entropy: np.ndarray  # [h, w]: -sum_n K log K over annotations and background, nats


def summarise_kernel(kernel: Tensor, grid: tuple[int, int]) -> KernelSummary:
    """Read a sparse kernel K [N + 1, M], the last row being the background, column by column."""
    indptr, indices, data = (part.numpy() for part in (kernel.crow_indices(), kernel.col_indices(), kernel.values()))
    cells, rows = grid[0] * grid[1], len(indptr) - 1
    row = np.repeat(np.arange(rows), np.diff(indptr))
    order = np.lexsort((data, indices))  # by cell, then by share: the last entry of a cell is its largest
    owner = np.full(cells, rows - 1)
    owner[indices[order]] = row[order]
    owner[owner == rows - 1] = -1
    positive = np.maximum(data, np.finfo(np.float32).tiny)
    entropy = np.bincount(indices, -positive * np.log(positive), minlength=cells)
    background = np.zeros(cells)
    background[indices[indptr[-2] :]] = data[indptr[-2] :]
    return KernelSummary(*(values.reshape(grid) for values in (owner, background, entropy)))


def main() -> None:
    """Draw the panels of one image into one PNG."""
    parser = make_parser("Draw an image's annotations, fitted Gaussians, their rendering and the transport kernel.")
    parser.add_argument("image", type=Path, help="image of a prepared data set, with its npy and gs_params")
    parser.add_argument("--out", type=Path, help="PNG to write (default: <image>_gst.png beside its Gaussians)")
    add_kernel_options(parser.add_argument)
    arguments = parse_arguments(parser)
    check_kernel_options(parser, arguments)

    image = load_image(arguments.image)
    height, width = image.shape[:2]
    points, _, scales, rotations = load_annotations(arguments.image)
    colors = Gaussians2D.load(gaussians_path(arguments.image)).colors
    gaussians = Gaussians2D(points, scales, rotations, colors)
    kernel = transport_kernel(points, scales, rotations, (height, width), **kernel_options(arguments))
    summary = summarise_kernel(kernel, cell_grid((height, width), STRIDE))
    # Beside the image itself it would be one of the data set's.
    out = arguments.out or gaussians_path(arguments.image).with_name(f"{arguments.image.stem}_gst.png")
    make_folder(out.parent)
    drawing = rasterize(gaussians, width, height).clamp(0, 1).numpy()
    save_kernel_figure(out, arguments.image.stem, image, (points, scales, rotations), drawing, *summary)
    share = 1 - summary.background.mean()
    print(f"{out}: {len(points)} annotations; {share:.0%} of the cells' mass goes to them, the rest to the background")


if __name__ == "__main__":
    run_script(main)
