"""The pictures of docs/method.md: docs/pictures/fit.png and kernel.png from a photograph of trees, border.png from one of nuclei.

python scripts/doc_pictures.py
"""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch
import yaml
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
PUBLISHED = {"scale_ratio": 1.0, "post_min": 1.0, "cut_off": 3.0, "background_ratio": 0.015}
HALF = math.sqrt(
    2 * math.log(2)
)  # standard deviations at which a Gaussian has half its maximum: about where a fitted object ends
BORDER_VIEW = 160, 60, 280  # left, top, width: the part of the photograph of nuclei that is shown, pixels
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


def border_figure(image: np.ndarray, gaussians: Gaussians2D, chosen: dict[str, float]) -> Figure:
    """Where the background begins with the published and with the demo's kernel: on a photograph, and along a radius."""
    left, top, side = BORDER_VIEW
    figure = Figure(figsize=(12.5, 3.7), layout="constrained", dpi=90)
    panels = figure.subplots(1, 3)
    for axes, (title, options) in zip(panels, {"published": PUBLISHED, "demo": chosen}.items()):
        # Finer cells for a smooth line; the least scale stays that of cells of 8 pixels.
        fine = {**options, "stride": 1, "post_min": options["post_min"] / STRIDE}
        arguments = gaussians.means, gaussians.scales, gaussians.rotations, image.shape[:2]
        owned = summarise(transport_kernel(*arguments, **fine), image.shape[:2])
        coarse = summarise(transport_kernel(*arguments, **options), cell_grid(image.shape[:2], STRIDE))
        share = (coarse.background < 0.5).mean()
        show_image(axes, image, f"{title}: nuclei own {share:.0%} of the cells")
        edges = np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5
        axes.contour(*edges, owned.background, levels=[0.5], colors="#ffc531", linewidths=1.3)
        axes.plot(*gaussians.means.numpy().T, ".", color="#ff4d4d", markersize=4)
        axes.set(xlim=(left, left + side), ylim=(top + side * 0.75, top))
    distance = np.linspace(0, 5, 201)
    for sigma in (5, 10, 15):
        for options, line in ((PUBLISHED, "-"), (chosen, "--")):
            scale = max(options["scale_ratio"] * sigma, STRIDE / options["post_min"])
            square = (distance * sigma / scale) ** 2
            odds = square - options["cut_off"] ** 2 / 2 - 2 * np.log(scale) + np.log(options["background_ratio"])
            label = f"{sigma} px, {'published' if line == '-' else 'demo'}"
            color = matplotlib.colormaps["viridis"](sigma / 18)
            panels[2].plot(distance, 1 / (1 + np.exp(-odds)), line, color=color, label=label)
    panels[2].axvline(HALF, color="grey", linewidth=0.8)
    panels[2].text(HALF + 0.05, 0.03, "half maximum", color="grey", fontsize=7)
    panels[2].set(xlabel="distance, fitted standard deviations", ylim=(0, 1), xlim=(0, 5))
    panels[2].set_title("share of the background around a lone object", fontsize=9)
    panels[2].legend(fontsize=7, frameon=False)
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
    """A PNG with a palette: a third of the size of one in full color."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as partial:
        Image.open(buffer).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(partial, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Fit the photographs, draw the pictures."""
    root = Path(__file__).resolve().parents[1]
    parser = make_parser("Draw the pictures of docs/method.md.")
    parser.add_argument("--image", type=Path, default=root / "examples/trees/Train/img_0009.jpg", help="raw photograph")
    nuclei = root / "examples/nuclei/Train/img_0003.jpg"
    parser.add_argument("--nuclei", type=Path, default=nuclei, help="raw photograph for the border")
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

    image = load_image(arguments.nuclei)
    points = read_ucf(arguments.nuclei.with_name(f"{arguments.nuclei.stem}_ann.mat"))
    cleaned = Gaussians2D.from_params(
        clean(fit_image(image, points, FitConfig(arguments.iterations), seed=0).gaussians.params)[0]
    )
    recipe = yaml.safe_load((root / "configs" / "demo.yml").read_text(encoding="utf-8"))
    chosen = {
        name: recipe[name] for name in ("scale_ratio", "post_min", "cut_off", "background_ratio") if name in recipe
    }
    save_small(border_figure(image, cleaned, {**PUBLISHED, **chosen}), folder / "border.png")


if __name__ == "__main__":
    run_script(main)
