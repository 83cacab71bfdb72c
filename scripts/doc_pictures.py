"""The pictures of docs/method.md, from a photograph in examples/trees: docs/pictures/fit.png and kernel.png.

python scripts/doc_pictures.py
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from datasets.raw.annotations import read_ucf
from GS2D.fitting import FitConfig, fit_image, foreground, initial_parameters
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import cell_grid, dense_transport_kernel, transport_kernel
from GS2D.process_gaussians import clean
from GS2D.rasterize import rasterize
from GS2D.visualize import summarise
from utils.cli import run_script
from utils.config import make_parser, number
from utils.evaluation.figures import add_ellipses, show_image
from utils.files import atomic_write, make_folder
from utils.images import load_image

STRIDE = 8  # pixels in a cell
COLORS = 192  # of a picture's palette, which keeps it below 150 KB


def fit_figure(image: np.ndarray, start: Gaussians2D, fitted: Gaussians2D, losses: str) -> Figure:
    """Photograph, foreground, what is drawn before and after the fit, and the ellipses of both."""
    height, width = image.shape[:2]
    points = fitted.means.numpy()
    figure = Figure(figsize=(12.5, 2.8), layout="constrained", dpi=100)
    panels = figure.subplots(1, 5)
    show_image(panels[0], image, f"{len(points)} annotations", points)
    show_image(panels[1], image * foreground(points, height, width)[..., None], "foreground")
    for axes, gaussians, title in zip(panels[2:], (start, fitted), ("drawn before", f"after, {losses}")):
        show_image(axes, rasterize(gaussians, width, height).clamp(0, 1).numpy(), title)
    show_image(panels[4], image, "ellipses before (cyan), after")
    for gaussians, color in ((start, "cyan"), (fitted, "yellow")):
        arrays = (tensor.numpy() for tensor in (gaussians.means, gaussians.scales, gaussians.rotations))
        add_ellipses(panels[4], *arrays, edgecolors=color, linewidths=0.7)
    return figure


def kernel_figure(gaussians: Gaussians2D, height: int, width: int) -> Figure:
    """Owner, background share and entropy of each cell, and three columns of K: a sure, a torn and an empty cell."""
    arguments = gaussians.means, gaussians.scales, gaussians.rotations, (height, width)
    kernel, grid = transport_kernel(*arguments, stride=STRIDE), cell_grid((height, width), STRIDE)
    dense = dense_transport_kernel(*arguments, stride=STRIDE).numpy()
    summary = summarise(kernel, grid)
    largest = dense[:-1].max(axis=0)
    empty = np.flatnonzero(dense[-1] > 0.999)
    cells = [largest.argmax(), (summary.entropy.ravel() - 5 * dense[-1]).argmax(), empty[len(empty) // 2]]
    figure = Figure(figsize=(12.5, 3.1), layout="constrained", dpi=100)
    panels = figure.subplots(1, 4)
    hues = np.random.default_rng(0).permutation(np.linspace(0, 1, len(gaussians), endpoint=False))
    palette = matplotlib.colormaps["hsv"](hues)[:, :3]
    owner = np.where((summary.owner >= 0)[..., None], palette[summary.owner] * (1 - summary.background[..., None]), 0)
    maps = (
        (owner, "owner (black: background)"),
        (summary.background, "background's share"),
        (summary.entropy, "entropy"),
    )
    for axes, (values, title) in zip(panels, maps):
        _show_cells(axes, values, title, gaussians.means.numpy())
        if values.ndim == 2:
            figure.colorbar(axes.images[0], ax=axes, shrink=0.8)
    for mark, cell in zip("abc", cells):
        row, column = divmod(int(cell), grid[1])
        panels[0].text((column + 0.5) * STRIDE, (row + 0.5) * STRIDE, mark, color="white", ha="center", va="center")
    _show_columns(panels[3], dense, cells)
    return figure


def _show_cells(axes: Axes, values: np.ndarray, title: str, points: np.ndarray) -> None:
    height, width = STRIDE * values.shape[0], STRIDE * values.shape[1]
    axes.imshow(values, extent=(0, width, height, 0), cmap="magma", vmin=0, interpolation="nearest")
    axes.plot(points[:, 0], points[:, 1], ".", color="white", markersize=1.5)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def _show_columns(axes: Axes, dense: np.ndarray, cells: list[int]) -> None:
    """Each column as one bar: the shares of its annotations from the largest on, the background in black."""
    for place, cell in enumerate(cells):
        left = 0.0
        for share in np.sort(dense[:-1, cell])[::-1][:12]:
            axes.barh(place, share, left=left, edgecolor="white", color=matplotlib.colormaps["viridis"](1 - left))
            left += share
        axes.barh(place, dense[-1, cell], left=1 - dense[-1, cell], color="black")
    axes.set(xlim=(0, 1), yticks=range(len(cells)), yticklabels=list("abc"))
    axes.invert_yaxis()
    axes.set_title("columns of K at the cells a, b, c", fontsize=9)


def save_small(figure: Figure, path: Path) -> None:
    """A PNG with a palette: a third of the size of one in full colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as partial:
        Image.open(buffer).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(partial, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Fit the photograph, draw both pictures."""
    root = Path(__file__).resolve().parents[1]
    parser = make_parser("Draw the pictures of docs/method.md.")
    parser.add_argument("--image", type=Path, default=root / "examples/trees/Train/img_0009.jpg", help="raw photograph")
    parser.add_argument("--iterations", type=number(int, 1), default=4000, help="of the fit")
    parser.add_argument("--out", type=Path, default=root / "docs/pictures", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    image = load_image(arguments.image)
    points = read_ucf(arguments.image.with_name(f"{arguments.image.stem}_ann.mat"))
    start = initial_parameters(image, points, 0, seed=0).activate()
    result = fit_image(image, points, FitConfig(arguments.iterations), seed=0)
    folder = make_folder(arguments.out)
    save_small(fit_figure(image, start, result.gaussians, f"loss {result.render_loss:.3f}"), folder / "fit.png")
    cleaned = Gaussians2D.from_params(clean(result.gaussians.params)[0])
    save_small(kernel_figure(cleaned, *image.shape[:2]), folder / "kernel.png")


if __name__ == "__main__":
    run_script(main)
