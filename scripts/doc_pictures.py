"""The pictures of docs/method.md: docs/pictures/fit.png and kernel.png from a photograph of trees, border.png from one of nuclei.

python scripts/doc_pictures.py
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

from datasets.raw.annotations import read_ucf
from GS2D.fitting import FitConfig, activate, fit_image, foreground, initial_parameters
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import cell_grid, transport_kernel
from GS2D.process_gaussians import clean
from GS2D.rasterize import rasterize
from GS2D.visualize import summarise_kernel
from utils.cli import run_script
from utils.config import make_parser, number
from utils.evaluation.figures import add_ellipses, owner_colors, show_image
from utils.files import atomic_write, make_folder
from utils.images import load_image
from utils.pixels import STRIDE

TREES, NUCLEI = ROOT / "examples/trees/Train/img_0009.jpg", ROOT / "examples/nuclei/Train/img_0003.jpg"
PUBLISHED = {"scale_ratio": 1.0, "post_min": 1.0, "cut_off": 3.0, "background_ratio": 0.015}
VIEW = {"xlim": (160, 440), "ylim": (270, 60)}  # the part of the photograph of nuclei that is shown, pixels


def draw_fit(panels, image: np.ndarray, start: Gaussians2D, fitted: Gaussians2D, loss: float) -> None:
    """Photograph, foreground, what is drawn before and after the fit, and the ellipses of both."""
    height, width = image.shape[:2]
    points = fitted.means.numpy()
    show_image(panels[0], image, f"{len(points)} annotations", points)
    show_image(panels[1], image * foreground(points, height, width)[..., None], "foreground")
    show_image(panels[4], image, "ellipses before (cyan), after")
    titles = "drawn before", f"after, loss {loss:.3f}"
    for axes, gaussians, title, color in zip(panels[2:], (start, fitted), titles, ("cyan", "yellow")):
        show_image(axes, rasterize(gaussians, width, height).clamp(0, 1).numpy(), title)
        arrays = (tensor.numpy() for tensor in (gaussians.means, gaussians.scales, gaussians.rotations))
        add_ellipses(panels[4], *arrays, edgecolors=color, linewidths=0.7)


def draw_kernel(panels, gaussians: Gaussians2D, size: tuple[int, int]) -> None:
    """Owner, background share and entropy of each cell."""
    grid = cell_grid(size, STRIDE)
    kernel = transport_kernel(gaussians.means, gaussians.scales, gaussians.rotations, size, stride=STRIDE)
    owner, background, entropy = summarise_kernel(kernel, grid)
    owners = owner_colors(owner, background, len(gaussians))
    maps = {"owner (black: background)": owners, "background's share": background, "entropy": entropy}
    for axes, (title, values) in zip(panels, maps.items()):
        show_image(axes, values, title, gaussians.means.numpy(), STRIDE, cmap="magma", interpolation="nearest")
    for axes in panels[1:]:
        axes.figure.colorbar(axes.images[0], ax=axes, shrink=0.8)


def draw_border(panels, image: np.ndarray, gaussians: Gaussians2D, kernels: dict[str, dict[str, float]]) -> None:
    """Where the background begins with each kernel."""
    size = image.shape[:2]
    arguments = gaussians.means, gaussians.scales, gaussians.rotations, size
    for axes, (title, options) in zip(panels, kernels.items()):
        # Finer cells for a smooth line; the least scale stays that of cells of 8 pixels.
        fine = {**options, "stride": 1, "post_min": options["post_min"] / STRIDE}
        _, border, _ = summarise_kernel(transport_kernel(*arguments, **fine), size)
        _, coarse, _ = summarise_kernel(transport_kernel(*arguments, **options), cell_grid(size, STRIDE))
        show_image(axes, image, f"{title}: nuclei own {(coarse < 0.5).mean():.0%} of the cells")
        edges = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
        axes.contour(*edges, border, levels=[0.5], colors="#ffc531", linewidths=1.3)
        axes.plot(*gaussians.means.numpy().T, ".", color="#ff4d4d", markersize=4)
        axes.set(**VIEW)


def save(path: Path, draw: Callable[..., None], panels: int, size: tuple[float, float], *drawn: object) -> None:
    """A PNG with a palette: a third of the size of one in full color."""
    figure, buffer = Figure(figsize=size, layout="constrained", dpi=100), io.BytesIO()
    draw(figure.subplots(1, panels), *drawn)
    figure.savefig(buffer, format="png")
    with atomic_write(path) as partial:
        Image.open(buffer).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(partial, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Fit the photographs, draw the pictures."""
    parser = make_parser("Draw the pictures of docs/method.md.")
    parser.add_argument("--iterations", type=number(int, 1), default=4000, help="of the fit")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, config = make_folder(arguments.out), FitConfig(arguments.iterations)
    trees, nuclei = load_image(TREES), load_image(NUCLEI)
    points, of_nuclei = (read_ucf(path.with_name(f"{path.stem}_ann.mat")) for path in (TREES, NUCLEI))
    start, fit = activate(initial_parameters(trees, points, 0, seed=0)), fit_image(trees, points, config, seed=0)
    save(folder / "fit.png", draw_fit, 5, (12.5, 2.8), trees, start, fit.gaussians, fit.render_loss)
    fits = fit, fit_image(nuclei, of_nuclei, config, seed=0)
    trees_cleaned, nuclei_cleaned = (Gaussians2D.from_params(clean(fit.gaussians.params)[0]) for fit in fits)
    save(folder / "kernel.png", draw_kernel, 3, (12.5, 3.4), trees_cleaned, trees.shape[:2])
    recipe = yaml.safe_load((ROOT / "configs" / "own.yml").read_text(encoding="utf-8"))
    kernels = {"published": PUBLISHED, "demo": {name: recipe.get(name, value) for name, value in PUBLISHED.items()}}
    save(folder / "border.png", draw_border, 2, (8.5, 3.4), nuclei, nuclei_cleaned, kernels)


if __name__ == "__main__":
    run_script(main)
