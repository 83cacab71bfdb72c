"""The demo's last step: its numbers beside what they should reach, and the page that walks through the method."""

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
from matplotlib.figure import Figure

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import Parameters, cell_grid, transport_kernel
from GS2D.visualize import summarise_kernel
from scripts.compare_losses import guess_counts
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import Result, mae_mse, page
from utils.evaluation.figures import add_ellipses, owner_colors, show_image, truth_density
from utils.evaluation.localisation import localisation_scores
from utils.files import atomic_write, gaussians_path, list_images, points_path, read_json_lines, read_points
from utils.images import load_image
from utils.pixels import STRIDE

# What the demo should reach: MAE as a share of the mean count, F1 at half a nucleus' radius and more, and at its radius.
MAE_SHARE, F1 = 0.06, {8.0: 0.7, 12.0: 0.84}
SMALL = 420  # pixels of a picture in a row of three


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
    by_name = {line["image"]: line for line in lines}
    tested = []
    for path in list_images(data / "test"):
        line, points = by_name[path.stem], read_points(points_path(path))[:, :2]
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


def write_page(
    out: Path, data: Path, run: Path, tested: list[Tested], guesses: list[Result], figures: list[tuple]
) -> None:
    """The walk through the method: with the training image of the most points, then the test images.

    ``figures``: (name, value, what it should reach, whether it does).
    """
    trained, epochs = list_images(data / "train"), read_json_lines(run / "metrics.jsonl")
    fullest = max(trained, key=lambda path: len(read_points(points_path(path))))
    photograph, gaussians = load_image(fullest), Gaussians2D.load(gaussians_path(fullest))
    owners = draw_owners(gaussians, *photograph.shape[:2], run)
    truths = [truth_density(image.points, *image.image.shape[:2]) for image in tested]
    bright, brightest_truth = peak([image.density for image in tested]), peak(truths)
    pictures = [
        {
            "found": picture(image.image, SMALL, points=image.heads, markersize=4),
            "truth, smoothed": picture(density_colors(truth, brightest_truth), SMALL),
            "predicted": picture(density_colors(image.density, bright), SMALL),
        }
        for image, truth in zip(tested, truths)
    ]
    page.write_page(
        out / "index.html",
        "demo.html",
        ("page.js",),
        {"zip": zip},
        figures=figures,
        annotated=len(gaussians),
        points=picture(photograph, points=gaussians.means),
        ellipses=picture(photograph, gaussians=gaussians),
        owners=picture(owners),
        epochs=len(epochs),
        trained=len(trained),
        curve=curve(epochs),
        tested=tested,
        pictures=pictures,
        guesses=[guess.predicted for guess in guesses],
    )


def draw_owners(gaussians: Gaussians2D, height: int, width: int, run: Path) -> np.ndarray:
    """Each pixel in the color of the annotation that gets most of its cell, the darker the more the background gets.

    The kernel has the options of the training in ``run``.
    """
    settings = yaml.safe_load((run / "config.yml").read_text(encoding="utf-8"))
    options = {name: settings[name] for name in Parameters._fields if name in settings}
    kernel = transport_kernel(gaussians.means, gaussians.scales, gaussians.rotations, (height, width), **options)
    owner, background, _ = summarise_kernel(kernel, cell_grid((height, width), STRIDE))
    colors = owner_colors(owner, background, len(gaussians))
    return (colors.repeat(STRIDE, 0).repeat(STRIDE, 1)[:height, :width] * 255).round().astype(np.uint8)


def density_colors(density: np.ndarray, highest: float) -> np.ndarray:
    """A density [H, W] in colors, uint8 [H, W, 3]; smoothed between the cells' centres, since cells are no objects."""
    height, width = density.shape
    size = math.ceil(width / STRIDE), math.ceil(height / STRIDE)
    cells = cv2.resize(density.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    return (matplotlib.colormaps["magma"](np.clip(smooth / highest, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def peak(densities: Sequence[np.ndarray]) -> float:
    """The brightest color: what one cell in 200 exceeds."""
    return max(max(float(np.quantile(density, 0.995)) for density in densities), 1e-9)


def picture(
    image: np.ndarray,
    width: int = 960,
    gaussians: Gaussians2D | None = None,
    points: Sequence[Sequence[float]] = (),
    markersize: float = 8,
) -> str:
    """An image with points, or dimmed under ellipses at one standard deviation, as a JPEG of ``width`` pixels in base64."""
    figure = Figure(figsize=(width / 100, width / 100 * image.shape[0] / image.shape[1]), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    show_image(axes, image if gaussians is None else (image * 0.62).astype(np.uint8), "")
    if gaussians is not None:
        arrays = (t.numpy() for t in (gaussians.means, gaussians.scales, gaussians.rotations))
        add_ellipses(axes, *arrays, edgecolors="#ffc531", linewidths=1.6)
    if len(points):
        axes.plot(*np.asarray(points).T[:2], ".", color="#ff4d4d", markersize=markersize)
    axes.axis("off")
    jpeg = io.BytesIO()
    figure.savefig(jpeg, format="jpeg", pil_kwargs={"quality": 82, "optimize": True})
    return base64.b64encode(jpeg.getvalue()).decode()


def curve(epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Training loss and validation MAE over the epochs, on a logarithmic axis."""
    traces = []
    for key, color, mode in (("loss", "var(--accent)", "lines"), ("val_mae", "var(--over)", "lines+markers")):
        x, y = zip(*((epoch["epoch"] + 1, max(epoch[key], 1e-3)) for epoch in epochs if key in epoch))
        traces.append({"mode": mode, "x": x, "y": y, "line": {"color": color}, "showlegend": False})
    return page.figure(traces, page.axis("epoch", zeroline=False), page.axis("", type="log", dtick=1, zeroline=False))


def main() -> None:
    """Write results.md and index.html beside the results of test.py; print the table."""
    parser = make_parser("Table and page of the demo.")
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
    for radius, wanted in F1.items():
        f1 = scores[f"{radius:g}"]["f1"] or 0.0
        figures.append((f"F1 within {radius:g} px", f"{f1:.2f}", f"{wanted:.2f} or more", f1 >= wanted))

    table = write_table(
        out / "results.md", results, guesses, [*figures, ("MSE (root of the mean square)", f"{rmse:.1f}", "", True)]
    )
    write_page(out, arguments.data_dir, arguments.run, tested, guesses, figures)
    print(table)
    missed = [name for name, _, _, ok in figures if not ok]
    print("reached: " + ("everything that the demo should reach" if not missed else f"not {', not '.join(missed)}"))
    print(f"now open {out / 'index.html'} in a browser; every test image: {out / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
