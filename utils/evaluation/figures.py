"""Pictures of fitted Gaussians and of densities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from scipy.ndimage import gaussian_filter

from utils.files import atomic_write

TRUTH_SIGMA = 8.0  # pixels; only for looking at: annotations have no extent


def add_ellipses(axes: Axes, means: np.ndarray, scales: np.ndarray, rotations: np.ndarray, **style: Any) -> None:
    """Draw Gaussians ([N, 2], [N, 2] and [N, 1]; pixels, radians) as ellipses at one standard deviation."""
    # An image's y axis points down, where matplotlib's angle turns with it: no sign to change.
    sizes, angles = 2 * np.asarray(scales).T, np.degrees(rotations)[:, 0]
    style = {"facecolors": "none", "edgecolors": "yellow", "linewidths": 1.0, **style}
    places = {"units": "xy", "offsets": means, "offset_transform": axes.transData}
    axes.add_collection(EllipseCollection(*sizes, angles, **places, **style))


def show_image(
    axes: Axes, image: np.ndarray, title: str, points: np.ndarray | None = None, cell: int = 1, **style: Any
) -> AxesImage:
    """An image [H, W, 3] in pixel coordinates (the top-left corner is (0, 0)), with points [N, 2] as dots.

    Also values [h, w] or colors [h, w, 3] of cells of ``cell`` pixels a side.
    """
    height, width = cell * image.shape[0], cell * image.shape[1]
    shown = axes.imshow(image, extent=(0, width, height, 0), **style)
    if points is not None:
        axes.plot(
            points[:, 0], points[:, 1], ".", color="red" if cell == 1 else "white", markersize=3 if cell == 1 else 2
        )
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    return shown


def truth_density(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Points [N, 2] as a density [H, W] for looking at; its sum is the number of points inside the image."""
    dots = np.zeros((height, width))
    columns, rows = points[:, 0].astype(int), points[:, 1].astype(int)
    np.add.at(dots, (rows.clip(0, height - 1), columns.clip(0, width - 1)), 1)
    return gaussian_filter(dots, TRUTH_SIGMA, mode="reflect")  # at the border the only mode that keeps the sum


def owner_colors(owner: np.ndarray, background: np.ndarray, annotations: int) -> np.ndarray:
    """Cells [h, w] in the color of their owner (-1: none), the darker the larger the background's share; [h, w, 3] in 0..1."""
    # Neighbours in index are often neighbours in space: a shuffled color circle keeps them apart.
    hues = np.random.default_rng(0).permutation(np.linspace(0, 1, max(annotations, 1), endpoint=False))
    palette = matplotlib.colormaps["hsv"](hues)[:, :3] * 0.8 + 0.2
    return np.where((owner >= 0)[..., None], palette[owner] * (1 - background[..., None]), 0)


def save_density_figure(
    path: Path, name: str, image: np.ndarray, points: np.ndarray | None, predicted: np.ndarray
) -> None:
    """The photograph with its annotations, their density and the predicted one ([H, W]), each with its own color scale.

    Without annotations (None): the photograph and the prediction.
    """
    height, width = image.shape[:2]
    shown = [(predicted, f"predicted: {predicted.sum():.1f}")]
    if points is not None:
        shown.insert(0, (truth_density(points, height, width), f"truth (smoothed): {len(points)}"))
        name = f"{name}: {len(points)} annotations"
    figure = Figure(figsize=(5.3 * (1 + len(shown)), 5 * height / width + 0.4), layout="constrained", dpi=100)
    photograph, *panels = figure.subplots(1, 1 + len(shown))
    show_image(photograph, image, name, points)
    for axes, (density, title) in zip(panels, shown):
        drawn = show_image(axes, density, title, vmin=0, cmap="viridis")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="objects per pixel")
    _save(figure, path)


def save_kernel_figure(
    path: Path, name: str, image: np.ndarray, gaussians: tuple, drawing: np.ndarray, cells: tuple
) -> None:
    """Five panels: annotations, Gaussians, their drawing [H, W, 3], each cell's owner, each cell's entropy.

    ``gaussians`` as ``add_ellipses`` takes them; ``cells``: owner, background and entropy, each [h, w].
    """
    owner, background, entropy = cells
    means, (height, width) = gaussians[0], image.shape[:2]
    figure = Figure(figsize=(25, 5 * height / width + 0.5), layout="constrained", dpi=100)
    points, ellipses, rendering, owners, entropies = figure.subplots(1, 5)
    show_image(points, image, f"{name}: {len(means)} annotations", means)
    show_image(ellipses, image, "fitted Gaussians, one standard deviation")
    add_ellipses(ellipses, *gaussians)
    show_image(rendering, drawing, "rendering")
    colors = owner_colors(owner, background, len(means))
    show_image(owners, colors, "owner of each cell (black: background)", means, cell=8)
    shown = show_image(entropies, entropy, "entropy of each cell's distribution (nats)", cell=8, cmap="magma", vmin=0)
    figure.colorbar(shown, ax=entropies, shrink=0.8)
    _save(figure, path)


def save_counts_figure(path: Path, name: str, times: np.ndarray, counts: np.ndarray, unit: str) -> None:
    """Counts [N] over their times [N], with their mean and their peak."""
    figure = Figure(figsize=(10, 3.6), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.plot(times, counts, linewidth=0.8, color="C0", marker="." if len(counts) < 3 else None)
    mean, peak = counts.mean(), int(counts.argmax())
    axes.axhline(mean, linestyle="--", linewidth=0.8, color="C7", label=f"mean {mean:.1f}")
    axes.plot(times[peak], counts[peak], "o", markersize=5, color="C3", label=f"peak {counts[peak]:.1f}")
    axes.set(xlabel=unit, ylabel="count", ylim=(0, None), title=name)
    axes.margins(x=0.01)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # The library's version and the time would change the bytes.
    changing = ("Creator", "Producer", "CreationDate") if path.suffix == ".pdf" else ("Software",)
    with atomic_write(path) as partial:
        figure.savefig(partial, metadata=dict.fromkeys(changing))
