"""The pictures of docs/method.md: docs/pictures/fit.png from a photograph of trees, border.png from one of nuclei.

python docs/draw_pictures.py
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image

from datasets.raw.annotations import read_ucf
from GS2D.fitting import FitConfig, activate, fit_image, foreground, initial_parameters
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import Parameters, cell_grid, transport_kernel
from GS2D.process_gaussians import clean
from GS2D.rasterize import rasterize
from GS2D.visualize import summarise_kernel
from utils.cli import run_script
from utils.config import make_parser, number
from utils.evaluation.figures import add_ellipses, show_image
from utils.files import atomic_write, make_folder
from utils.images import load_image
from utils.pixels import STRIDE

TREES, NUCLEI = ROOT / "examples/trees/Train/img_0009.jpg", ROOT / "examples/nuclei/Train/img_0003.jpg"


@contextlib.contextmanager
def picture(path: Path, panels: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    """Axes to draw into; written as a PNG with a palette, a third of the size of one in full color."""
    figure, buffer = Figure(figsize=size, layout="constrained", dpi=100), io.BytesIO()
    yield figure.subplots(1, panels)
    figure.savefig(buffer, format="png")
    with atomic_write(path) as partial:
        Image.open(buffer).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(partial, optimize=True)


def draw_fit(path: Path, config: FitConfig) -> None:
    """Photograph, foreground, what is drawn before and after the fit, and the ellipses of both."""
    image, points = load_image(TREES), read_ucf(TREES.with_name(f"{TREES.stem}_ann.mat"))
    (height, width), fit = image.shape[:2], fit_image(image, points, config)
    start, after = activate(initial_parameters(image, points, 0, seed=0)), f"after, loss {fit.render_loss:.3f}"
    with picture(path, 5, (12.5, 2.8)) as (photograph, mask, *drawn, ellipses):
        show_image(photograph, image, f"{len(points)} annotations", points)
        show_image(mask, image * foreground(points, height, width)[..., None], "foreground")
        show_image(ellipses, image, "ellipses before (cyan), after")
        shown = (start, "drawn before", "cyan"), (fit.gaussians, after, "yellow")
        for axes, (gaussians, title, color) in zip(drawn, shown):
            show_image(axes, rasterize(gaussians, width, height).clamp(0, 1), title)
            columns = (column.numpy() for column in (gaussians.means, gaussians.scales, gaussians.rotations))
            add_ellipses(ellipses, *columns, edgecolors=color, linewidths=0.7)


def draw_border(path: Path, config: FitConfig) -> None:
    """Where the background begins with the published kernel and with the demo's, on a part of the photograph."""
    image, points = load_image(NUCLEI), read_ucf(NUCLEI.with_name(f"{NUCLEI.stem}_ann.mat"))
    size, fitted = image.shape[:2], fit_image(image, points, config).gaussians
    gaussians = Gaussians2D.from_params(clean(fitted.params)[0])
    recipe = yaml.safe_load((ROOT / "configs" / "own.yml").read_text(encoding="utf-8"))
    demo = Parameters(**{name: recipe[name] for name in Parameters._fields if name in recipe})
    with picture(path, 2, (8.5, 3.4)) as panels:
        for axes, title, parameters in zip(panels, ("published", "demo"), (Parameters(), demo)):
            owned = (background_of(gaussians, size, parameters) < 0.5).mean()
            show_image(axes, image, f"{title}: nuclei own {owned:.0%} of the cells")
            # Finer cells for a smooth line; the least scale stays that of cells of 8 pixels.
            fine = parameters._replace(stride=1, post_min=parameters.post_min / STRIDE)
            rows, columns = (np.arange(side) + 0.5 for side in size)
            border = background_of(gaussians, size, fine)
            axes.contour(columns, rows, border, levels=[0.5], colors="#ffc531", linewidths=1.3)
            axes.plot(*points.T, ".", color="#ff4d4d", markersize=4)
            axes.set(xlim=(160, 440), ylim=(270, 60))


def background_of(gaussians: Gaussians2D, size: tuple[int, int], parameters: Parameters) -> np.ndarray:
    """The background's share of each cell."""
    columns = gaussians.means, gaussians.scales, gaussians.rotations
    kernel = transport_kernel(*columns, size, **parameters._asdict())
    _, background, _ = summarise_kernel(kernel, cell_grid(size, parameters.stride))
    return background


def main() -> None:
    """Draw all."""
    parser = make_parser("Draw the pictures of docs/method.md.")
    parser.add_argument("--iterations", type=number(int, 1), default=4000, help="of the fit")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures", help="folder to write to")
    arguments = parser.parse_args()
    draw_fit(make_folder(arguments.out) / "fit.png", FitConfig(arguments.iterations))
    draw_border(arguments.out / "border.png", FitConfig(arguments.iterations))
    print(f"look at {arguments.out}")


if __name__ == "__main__":
    run_script(main)
