"""Look at an image of a prepared data set as GST sees it: annotations, Gaussians, rendering, transport kernel.

python GS2D/visualize.py data/UCF-Train-Val-Test/train/IMG_0001.jpg [--out FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.sparse import csr_array
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


def summarise_kernel(kernel: Tensor, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a sparse kernel K [N + 1, M], the last row being the background, says of each of its cells, each [h, w].

    The annotation that gets most of the cell's mass, -1 for the background; the background's share, in [0, 1]; the entropy
    -sum_n K log K over annotations and background, nats.
    """
    parts = (part.numpy() for part in (kernel.values(), kernel.col_indices(), kernel.crow_indices()))
    matrix = csr_array(tuple(parts), shape=kernel.shape)
    owner, annotations = matrix.argmax(axis=0), matrix.shape[0] - 1
    logarithms = np.log(np.maximum(matrix.data, np.finfo(np.float32).tiny))
    entropy = np.bincount(matrix.indices, -matrix.data * logarithms, minlength=matrix.shape[1])
    summary = np.where(owner == annotations, -1, owner), matrix[[annotations]].toarray(), entropy
    return tuple(values.reshape(grid) for values in summary)


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
    save_kernel_figure(out, arguments.image.stem, image, (points, scales, rotations), drawing, summary)
    share = 1 - summary[1].mean()
    print(f"{out}: {len(points)} annotations; {share:.0%} of the cells' mass goes to them, the rest to the background")


if __name__ == "__main__":
    run_script(main)
