"""The demo's last step: its numbers beside what they should reach, the page that walks through the method, two pictures."""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from GS2D.fitting import FitConfig, fit_image
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import cell_grid, transport_kernel
from GS2D.process_gaussians import clean
from GS2D.visualize import summarise
from scripts.experiments import guess_counts
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import Result, mae_mse, page
from utils.evaluation.figures import add_ellipses, owner_colors, save_gaussians_figure, truth_density
from utils.evaluation.localisation import localisation_scores
from utils.evaluation.page import Markup, fill
from utils.files import atomic_write, gaussians_path, list_images, points_path, read_points
from utils.images import load_image
from utils.pixels import STRIDE

KERNEL_NAMES = ("background_ratio", "cut_off", "post_min", "post_max", "scale_ratio")
# What the demo should reach: MAE as a share of the mean count, F1 at half a nucleus' radius and more, and at its radius.
MAE_SHARE, F1 = 0.06, {8.0: 0.5, 12.0: 0.75}
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


def read_tested(data: Path, out: Path) -> list[Tested]:
    """The test images with what test.py left of them in ``out``."""
    lines = map(json.loads, (out / "report_data.jsonl").read_text(encoding="utf-8").splitlines())
    found = {line["image"]: line for line in lines}
    tested = []
    for path in list_images(data / "test"):
        line, points = found[path.stem], read_points(points_path(path))[:, :2]
        density = np.load(out / "densities" / f"{path.stem}.npy", allow_pickle=False)
        heads = np.array(line["heads"]).reshape(-1, 2)
        tested.append(Tested(path.stem, load_image(path), points, heads, density, line["predicted"]))
    return tested


def write_table(path: Path, results: list[Result], guesses: list[Result], figures: list[tuple]) -> str:
    """Counts and figures as two Markdown tables."""
    rows = [("image", "truth", "predicted", "mean density of the training images"), ("---",) * 4]
    rows += [(r.name, f"{r.truth:g}", f"{r.predicted:.1f}", f"{g.predicted:.1f}") for r, g in zip(results, guesses)]
    rows += [("MAE", "", f"{mae_mse(results)[0]:.1f}", f"{mae_mse(guesses)[0]:.1f}"), ()]
    rows += [("figure", "measured", "should be", "reached"), ("---",) * 4]
    rows += [(name, value, target, ("yes" if ok else "no") if target else "") for name, value, target, ok in figures]
    table = "\n".join(f"| {' | '.join(row)} |" if row else "" for row in rows)
    with atomic_write(path) as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    return table


def save_pictures(
    data: Path, run: Path, out: Path, tested: list[Tested], guesses: list[float], figures: list[tuple]
) -> None:
    """index.html; gaussians.png of a training image; overview.jpg of a test image, fitted here for the picture alone."""
    settings = yaml.safe_load((run / "config.yml").read_text(encoding="utf-8"))
    options = {"stride": STRIDE, **{name: settings[name] for name in KERNEL_NAMES}}

    trained = list_images(data / "train")
    fullest = max(trained, key=lambda path: len(read_points(points_path(path))))
    image, gaussians = load_image(fullest), Gaussians2D.load(gaussians_path(fullest))
    arrays = (t.numpy() for t in (gaussians.means, gaussians.scales, gaussians.rotations))
    save_gaussians_figure(out / "gaussians.png", image, *arrays)
    write_page(out / "index.html", image, gaussians, options, run, len(trained), tested, guesses, figures)

    shown = tested[0]
    fitted = Gaussians2D.from_params(
        clean(fit_image(shown.image, shown.points, FitConfig(), seed=0).gaussians.params)[0]
    )
    owners = draw_owners(fitted, *shown.image.shape[:2], options)
    with atomic_write(out / "overview.jpg") as partial:
        partial.write_bytes(overview(shown.image, fitted, owners, shown.density))


def draw_owners(gaussians: Gaussians2D, height: int, width: int, options: dict[str, Any]) -> np.ndarray:
    """Each pixel in the color of the annotation that gets most of its cell, the darker the more the background gets."""
    kernel = transport_kernel(gaussians.means, gaussians.scales, gaussians.rotations, (height, width), **options)
    owner, background, _ = summarise(kernel, cell_grid((height, width), STRIDE))
    colors = owner_colors(owner, background, len(gaussians))
    return (colors.repeat(STRIDE, 0).repeat(STRIDE, 1)[:height, :width] * 255).round().astype(np.uint8)


def density_colors(density: np.ndarray, highest: float) -> np.ndarray:
    """A density [H, W] in colors, uint8 [H, W, 3]; smoothed between the cells' centres, since cells are no objects."""
    height, width = density.shape
    size = math.ceil(width / STRIDE), math.ceil(height / STRIDE)
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
    jpeg = io.BytesIO()
    figure.savefig(jpeg, format="jpeg", pil_kwargs={"quality": QUALITY, "optimize": True})
    return jpeg.getvalue()


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


def curve(epochs: Sequence[dict[str, Any]]) -> Markup:
    """Training loss and validation MAE over the epochs, on a logarithmic axis."""
    traces = []
    for key, color, mode in (("loss", "var(--accent)", "lines"), ("val_mae", "var(--over)", "lines+markers")):
        x, y = zip(*((epoch["epoch"] + 1, max(epoch[key], 1e-3)) for epoch in epochs if key in epoch))
        traces.append({"mode": mode, "x": x, "y": y, "line": {"color": color}, "showlegend": False})
    axes = page.axis("epoch", zeroline=False), page.axis("", type="log", dtick=1, zeroline=False)
    return page.plot("Training loss and validation error over the epochs", {"": page.figure(traces, *axes)})


def photo(jpeg: bytes, alt: str, caption: str = "") -> Markup:
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return fill('<figure><figcaption>{}</figcaption><img src="{}" alt="{}"></figure>', caption, source, alt)


def density_rows(tested: Sequence[Tested]) -> list[Markup]:
    """Photograph, truth and prediction of each test image, in one color scale, smoothed alike."""
    truths = [truth_density(image.points, *image.image.shape[:2]) for image in tested]
    bright, brightest_truth = peak([image.density for image in tested]), peak(truths)
    rows = []
    for number, (image, truth) in enumerate(zip(tested, truths)):
        pictures = {
            "found": picture(image.image, SMALL, points=image.heads, markersize=4),
            "truth, smoothed": picture(density_colors(truth, brightest_truth), SMALL),
            "predicted": picture(density_colors(image.density, bright), SMALL),
        }
        row = [photo(jpeg, f"{image.name}: {name}", "" if number else name) for name, jpeg in pictures.items()]
        rows.append(fill('<div class="pictures">{}</div>', row))
    return rows


def counts_table(tested: Sequence[Tested], guesses: Sequence[float]) -> Markup:
    """Truth, prediction and the mean predictor's guess of each test image."""
    rows = [
        (t.name, len(t.points), f"{t.predicted:.1f}", f"{t.predicted - len(t.points):+.1f}", f"{guess:.1f}")
        for t, guess in zip(tested, guesses)
    ]
    return page.table(("image", "truth", "predicted", "error", "mean density"), rows)


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
    owners = draw_owners(gaussians, *photograph.shape[:2], options)
    points = gaussians.means.numpy()
    objects = sum(len(image.points) for image in tested)
    steps = {
        "Points": (
            f"Somebody has put one point on each of {len(points)} nuclei. A point says where an object is, not how far it "
            "reaches: that is what the method finds out.",
            photo(picture(photograph, points=points), "photograph with annotated points"),
        ),
        "Gaussians": (
            "One 2D Gaussian for each point is fitted to the photograph by splatting: drawn, compared with the image, "
            "improved. Ellipses show one standard deviation.",
            photo(picture(photograph, gaussians=gaussians), "photograph with fitted ellipses"),
        ),
        "Owners: the transport kernel K": (
            "The shapes say which annotation each cell of 8 x 8 pixels belongs to; black belongs to the background. K is "
            "known before training, and the loss is one matrix product.",
            photo(picture(owners), "owner of each cell in colors"),
        ),
        "Training": (
            fill(
                '{} epochs on {} photographs. <b class="loss">Training loss</b> of a crop and <b class="over">error of the '
                "count</b> on images that are not trained on.",
                *(len(epochs), trained),
            ),
            curve(epochs),
        ),
        "Density": (
            "Test images, which training has not seen. Left: what is found where the density peaks. The predicted density "
            "ought to have one bright spot for each nucleus.",
            density_rows(tested),
        ),
        "Counts": (
            "The count is the density's sum. Last column: the mean density of the training images, the simplest guess.",
            counts_table(tested, guesses),
        ),
    }
    template = '<section class="step"><div><h2><b>{}</b>{}</h2><p class="quiet">{}</p></div><div>{}</div></section>\n'
    intro = (
        "GST counts from point annotations. This page follows the demo's run on fluorescence photographs of cell nuclei "
        f"(BBBC039, public domain): {len(tested)} test images with {objects} nuclei."
    )
    tiles = [
        page.tile(name, value, f"should reach: {target}", "value" if reached else "value over")
        for name, value, target, reached in figures
    ]
    footer = (
        '<footer class="quiet">More: <a href="report.html">every test image, zoomable</a>, <a href="results.md">the table</a>, '
        "and <code>docs/method.md</code> for each equation with its function.</footer>"
    )
    parts = [fill(template, number, title, *step) for number, (title, step) in enumerate(steps.items(), 1)]
    parts = [fill('<div class="tiles">{}</div>', tiles), *parts, Markup(footer)]
    page.write_page(path, "demo", "From points to a count, in six steps", intro, parts)


def main() -> None:
    """Write results.md, index.html, overview.jpg and gaussians.png beside the results of test.py; print the table."""
    parser = make_parser("Table, page and pictures of the demo.")
    for option in ("--data-dir", "--run", "--out"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out

    tested, guesses = read_tested(arguments.data_dir, out), guess_counts(arguments.data_dir, "test")
    results = [Result(image.name, float(len(image.points)), image.predicted) for image in tested]
    mae, rmse = mae_mse(results)
    limit = MAE_SHARE * float(np.mean([result.truth for result in results]))
    scores = localisation_scores([image.heads for image in tested], [image.points for image in tested], radii=tuple(F1))
    figures = [("MAE, nuclei an image", f"{mae:.1f}", f"{limit:.1f} or less", mae <= limit)]
    for at in scores["at"]:
        f1, wanted = at["f1"] or 0.0, F1[at["radius"]]
        figures.append((f"F1 within {at['radius']:g} px", f"{f1:.2f}", f"{wanted:.2f} or more", f1 >= wanted))

    table = write_table(
        out / "results.md", results, guesses, [*figures, ("MSE (root of the mean square)", f"{rmse:.1f}", "", True)]
    )
    save_pictures(arguments.data_dir, arguments.run, out, tested, [guess.predicted for guess in guesses], figures)
    print(table)
    missed = [name for name, _, _, ok in figures if not ok]
    print("reached: " + ("everything that the demo should reach" if not missed else f"not {', not '.join(missed)}"))
    print(f"now open {out / 'index.html'} in a browser; every test image: {out / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
