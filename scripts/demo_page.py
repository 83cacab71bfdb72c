"""The demo's page: what each step of the method made of the demo's own photographs, in one file without network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import cell_grid, transport_kernel
from GS2D.visualize import summarise
from utils.evaluation.figures import add_ellipses, truth_density
from utils.files import atomic_write

CELL = 8  # pixels in a cell
WIDTH = 960  # pixels of a large picture
SMALL = 420  # pixels of one in a row of three
QUALITY = 82  # of JPEGs
POINT, ELLIPSE = "#ff4d4d", "#ffc531"
DIMMED = 0.62  # what is left of a photograph's light under ellipses
DENSITIES = "magma"


class Tested(NamedTuple):
    """A test image and what the network said of it."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    points: np.ndarray  # [N, 2], (x, y), pixels
    heads: np.ndarray  # [M, 2]
    density: np.ndarray  # [H, W], objects per pixel
    predicted: float


def owner_colors(gaussians: Gaussians2D, height: int, width: int, options: dict[str, Any]) -> np.ndarray:
    """Each pixel in the color of the annotation that gets most of its cell, the darker the more the background gets."""
    kernel = transport_kernel(gaussians.means, gaussians.scales, gaussians.rotations, (height, width), **options)
    owner, background, _ = summarise(kernel, cell_grid((height, width), CELL))
    # Neighbours in index are often neighbours in space: a shuffled color circle keeps them apart.
    hues = np.random.default_rng(0).permutation(np.linspace(0, 1, max(len(gaussians), 1), endpoint=False))
    palette = matplotlib.colormaps["hsv"](hues)[:, :3] * 0.8 + 0.2
    colors = np.where((owner >= 0)[..., None], palette[owner] * (1 - background[..., None]), 0)
    return (colors.repeat(CELL, 0).repeat(CELL, 1)[:height, :width] * 255).round().astype(np.uint8)


def density_colors(density: np.ndarray, highest: float) -> np.ndarray:
    """A density [H, W] in colors, uint8 [H, W, 3]; smoothed between the cells' centres, since cells are no objects."""
    height, width = density.shape
    size = math.ceil(width / CELL), math.ceil(height / CELL)
    cells = cv2.resize(density.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    return (matplotlib.colormaps[DENSITIES](np.clip(smooth / highest, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def draw(
    axes: Axes, image: np.ndarray, gaussians: Gaussians2D | None = None, points: np.ndarray | None = None, **style
) -> None:
    """An image without frame, with ellipses at one standard deviation and points on it."""
    height, width = image.shape[:2]
    if gaussians is not None:
        image = (image * DIMMED).astype(np.uint8)
    axes.imshow(image, extent=(0, width, height, 0))
    if gaussians is not None:
        arrays = (t.numpy() for t in (gaussians.means, gaussians.scales, gaussians.rotations))
        add_ellipses(axes, *arrays, edgecolors=ELLIPSE, linewidths=style.pop("linewidths", 1.6))
    if points is not None:
        axes.plot(
            points[:, 0], points[:, 1], **{"marker": ".", "linestyle": "", "color": POINT, "markersize": 8, **style}
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")


def picture(image: np.ndarray, width: int = WIDTH, **marks) -> bytes:
    """An image with marks (see ``draw``) as a JPEG of ``width`` pixels."""
    figure = Figure(figsize=(width / 100, width / 100 * image.shape[0] / image.shape[1]), dpi=100)
    draw(figure.add_axes((0, 0, 1, 1)), image, **marks)
    return encoded(figure)


def encoded(figure: Figure) -> bytes:
    """A figure as a JPEG."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").save(small, "JPEG", quality=QUALITY, optimize=True)
    return small.getvalue()


def overview(image: np.ndarray, gaussians: Gaussians2D, owners: np.ndarray, density: np.ndarray) -> bytes:
    """Photograph with points, ellipses, owners and density, one quarter of the picture each, as a JPEG."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(12, 12 * height / width), dpi=100, facecolor="black")
    panels = figure.subplots(2, 2, gridspec_kw={"wspace": 0.008, "hspace": 0.008 * width / height})
    figure.subplots_adjust(0, 0, 1, 1)
    small = {"markersize": 6}
    draw(panels[0, 0], image, points=gaussians.means.numpy(), **small)
    draw(panels[0, 1], image, gaussians, linewidths=1.4)
    draw(panels[1, 0], owners)
    draw(panels[1, 1], density_colors(density, peak([density])))
    titles = (
        "photograph, one point an object",
        "one Gaussian fitted to each",
        "which cell belongs to whom",
        "predicted density",
    )
    for axes, title in zip(panels.flat, titles):
        box = {"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 4}
        axes.text(0.015, 0.975, title, transform=axes.transAxes, va="top", color="white", fontsize=13, bbox=box)
    return encoded(figure)


def peak(densities: Sequence[np.ndarray]) -> float:
    """The brightest color: what one cell in 200 exceeds."""
    return max(float(np.quantile(np.stack([np.quantile(d, 0.995) for d in densities]), 1)), 1e-9)


def curve(epochs: Sequence[dict[str, Any]]) -> str:
    """Training loss and validation MAE over the epochs as SVG, both on a logarithmic axis."""
    width, height, left, bottom = 720, 320, 56, 44
    loss = [(epoch["epoch"] + 1, epoch["loss"]) for epoch in epochs]
    val = [(epoch["epoch"] + 1, epoch["val_mae"]) for epoch in epochs if "val_mae" in epoch]
    values = [max(value, 1e-3) for _, value in loss + val]
    low, high = math.floor(math.log10(min(values)) * 2) / 2, math.ceil(math.log10(max(values)) * 2) / 2
    last = max(loss[-1][0], 2)

    def place(epoch: float, value: float) -> str:
        x = left + (width - left - 8) * (epoch - 1) / (last - 1)
        y = 8 + (height - bottom - 8) * (high - math.log10(max(value, 1e-3))) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for power in range(math.ceil(low), math.floor(high) + 1):
        y = place(1, 10**power).split(",")[1]
        parts.append(f'<line class="axis" x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for epoch in sorted({1, round(last / 4), round(last / 2), round(3 * last / 4), last}):
        x, label = place(epoch, 1).split(",")[0], f"epoch {epoch}" if epoch == last else epoch
        anchor = "end" if epoch == last else "middle"
        parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<polyline class="loss" points="{" ".join(place(*point) for point in loss)}"/>')
    parts.append(f'<polyline class="count" points="{" ".join(place(*point) for point in val)}"/>')
    parts += [f'<circle class="count-dot" r="4" cx="{x}" cy="{y}"/>' for x, y in (place(*p).split(",") for p in val)]
    label = "Training loss and validation error over the epochs"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def figure_tag(jpeg: bytes, alt: str, caption: str = "") -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure>{caption}<img src="{source}" alt="{html.escape(alt)}"></figure>'


def step(number: int, title: str, text: str, content: str) -> str:
    return f"<section><div><h2><span>{number}</span>{title}</h2><p>{text}</p></div><div>{content}</div></section>"


def density_rows(tested: Sequence[Tested]) -> str:
    """Photograph, truth and prediction of each test image, in one color scale, smoothed alike."""
    predicted = [image.density for image in tested]
    truths = [truth_density(image.points, *image.image.shape[:2]) for image in tested]
    bright = peak(predicted), peak(truths)
    rows = []
    for number, (image, truth) in enumerate(zip(tested, truths)):
        heads = image.heads if len(image.heads) else None
        tags = (
            (picture(image.image, SMALL, points=heads, markersize=4), "found" if not number else ""),
            (picture(density_colors(truth, bright[1]), SMALL), "truth, smoothed" if not number else ""),
            (picture(density_colors(image.density, bright[0]), SMALL), "predicted" if not number else ""),
        )
        rows.append(f'<div class="panels">{"".join(figure_tag(j, f"{image.name}: {c}", c) for j, c in tags)}</div>')
    return "".join(rows)


def counts_table(tested: Sequence[Tested], guesses: Sequence[float]) -> str:
    """Truth, prediction and the mean predictor's guess of each test image."""
    rows = ["<tr><th>image</th><th>truth</th><th>predicted</th><th>error</th><th>mean density</th></tr>"]
    for image, guess in zip(tested, guesses):
        error = image.predicted - len(image.points)
        cells = image.name, len(image.points), f"{image.predicted:.1f}", f"{error:+.1f}", f"{guess:.1f}"
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def write_page(
    path: Path,
    photograph: np.ndarray,
    gaussians: Gaussians2D,
    options: dict[str, Any],
    run: Path,
    trained: int,
    tested: Sequence[Tested],
    guesses: Sequence[float],
    figures: Sequence[tuple[str, str, str, bool]],
) -> None:
    """``figures``: (name, value, what it should reach, whether it does); ``options``: of the kernel; ``run``: of training on ``trained`` images."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    owners = owner_colors(gaussians, *photograph.shape[:2], options)
    points = gaussians.means.numpy()
    objects = sum(len(image.points) for image in tested)
    steps = [
        step(
            1,
            "Points",
            f"Somebody has put one point on each of {len(points)} nuclei. A point says where an object is, not how far it "
            "reaches: that is what the method finds out.",
            figure_tag(picture(photograph, points=points), "photograph with annotated points"),
        ),
        step(
            2,
            "Gaussians",
            "One 2D Gaussian for each point is fitted to the photograph by splatting: drawn, compared with the image, "
            "improved. Ellipses show one standard deviation.",
            figure_tag(picture(photograph, gaussians=gaussians), "photograph with fitted ellipses"),
        ),
        step(
            3,
            "Owners: the transport kernel K",
            "The shapes say which annotation each cell of 8 x 8 pixels belongs to; black belongs to the background. K is "
            "known before training, and the loss is one matrix product.",
            figure_tag(picture(owners), "owner of each cell in colors"),
        ),
        step(
            4,
            "Training",
            f"{len(epochs)} epochs on {trained} photographs. "
            '<b style="color:var(--accent)">Training loss</b> of a crop and '
            '<b style="color:var(--warm)">error of the count</b> on images that are not trained on.',
            curve(epochs),
        ),
        step(
            5,
            "Density",
            "Test images, which training has not seen. Left: what is found where the density peaks. The predicted density "
            "ought to have one bright spot for each nucleus.",
            density_rows(tested),
        ),
        step(
            6,
            "Counts",
            "The count is the density's sum. Last column: the mean density of the training images, the simplest guess.",
            counts_table(tested, guesses),
        ),
    ]
    boxes = "".join(
        f"<div><dt>{name}</dt><dd{'' if ok else ' class=missed'}>{value}</dd><small>should reach: {target}</small></div>"
        for name, value, target, ok in figures
    )
    intro = (
        "GST counts from point annotations. This page follows the demo's run on fluorescence photographs of cell nuclei "
        f"(BBBC039, public domain): {len(tested)} test images with {objects} nuclei."
    )
    footer = (
        'More: <a href="report.html">every test image, zoomable</a>, <a href="results.md">the table</a>, and '
        "<code>docs/method.md</code> for each equation with its function."
    )
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        intro=intro, figures=boxes, steps="\n".join(steps), footer=footer
    )
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")
