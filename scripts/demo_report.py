"""The demo's last step: its numbers beside what they should reach, and the page that walks through the method."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import Parameters, cell_grid, transport_kernel
from GS2D.visualize import summarise_kernel
from scripts.compare_losses import guess_counts
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import Result, mae_mse
from utils.evaluation.figures import owner_colors, truth_density
from utils.evaluation.localisation import localisation_scores
from utils.evaluation.page import encoded, number, write_page
from utils.files import atomic_write, gaussians_path, list_images, points_path, read_json_lines, read_points
from utils.images import image_size
from utils.pixels import STRIDE

# What the demo should reach: MAE as a share of the mean count, F1 at half a nucleus' radius and more, and at its radius.
MAE_SHARE, F1 = 0.06, {8.0: 0.7, 12.0: 0.84}
HEAD = ("image", "truth", "predicted", "error", "mean density")  # the last: of the training images
GREY, GREEN, ORANGE = "#878d94", "#22968e", "#d9692f"  # on light and on dark pages


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def draw_owners(gaussians: Gaussians2D, size: tuple[int, int], run: Path) -> np.ndarray:
    """Each cell of an image of ``size`` (height, width) in the color of the annotation that gets most of it, [h, w, 3].

    The darker, the more the background gets. The kernel has the options of the training in ``run``.
    """
    settings = yaml.safe_load((run / "config.yml").read_text(encoding="utf-8"))
    options = {name: settings[name] for name in Parameters._fields if name in settings}
    kernel = transport_kernel(gaussians.means, gaussians.scales, gaussians.rotations, size, **options)
    owner, background, _ = summarise_kernel(kernel, cell_grid(size, STRIDE))
    return owner_colors(owner, background, len(gaussians))


def draw_densities(densities: Sequence[np.ndarray]) -> list[str]:
    """Densities [h, w] in colors, of which the brightest is what one value in 200 exceeds."""
    brightest = max(max(np.quantile(density, 0.995) for density in densities), 1e-9)
    return [png(matplotlib.colormaps["magma"](density / brightest)) for density in densities]


def png(colors: np.ndarray) -> str:
    """Colors [h, w, 3 or 4] in 0..1 as a PNG in base64."""
    return encoded(Image.fromarray((colors * 255).round().astype(np.uint8)), "PNG")


def cells(line: dict[str, Any]) -> np.ndarray:
    """The density of a line of ``report_data.jsonl``, objects a cell, [h, w]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(line["density"])))) * (line["density_max"] / 255)


def curve(epochs: Sequence[dict[str, Any]]) -> str:
    """Training loss and validation MAE over the epochs on a logarithmic axis, a PNG in base64 for light and dark pages."""
    figure, buffer = Figure(figsize=(8, 3.6), layout="constrained", dpi=200), io.BytesIO()
    axes = figure.subplots()
    for key, color, marker in (("loss", GREEN, ""), ("val_mae", ORANGE, ".")):
        x, y = zip(*((epoch["epoch"] + 1, epoch[key]) for epoch in epochs if key in epoch))
        axes.semilogy(x, y, color=color, marker=marker)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_xlabel("epoch", color=GREY)
    axes.tick_params(which="both", colors=GREY)
    axes.grid(color=GREY, alpha=0.3)
    axes.spines[:].set_visible(False)
    figure.savefig(buffer, transparent=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Write results.md and index.html beside the results of test.py; print the table."""
    parser = make_parser("Table and page of the demo.")
    for option in ("--data-dir", "--run", "--out"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    data, run, out = arguments.data_dir, arguments.run, arguments.out

    tested, guesses = read_json_lines(out / "report_data.jsonl"), guess_counts(data, "test")
    results = [Result(line["image"], float(len(line["points"])), line["predicted"]) for line in tested]
    (mae, rmse), (mae_of_guesses, _) = mae_mse(results), mae_mse(guesses)
    counts = [
        [name, f"{truth:g}", number(predicted, 1), number(predicted - truth, 1, sign=True), number(guess.predicted, 1)]
        for (name, truth, predicted), guess in zip(results, guesses, strict=True)
    ]
    counts.append(["MAE", "", "", f"{mae:.1f}", f"{mae_of_guesses:.1f}"])
    limit = MAE_SHARE * float(np.mean([result.truth for result in results]))
    positions = ([np.reshape(line[key], (-1, 2)) for line in tested] for key in ("heads", "points"))
    scores = localisation_scores(*positions, radii=tuple(F1))
    figures = [("MAE, nuclei an image", f"{mae:.1f}", f"{limit:.1f} or less", mae <= limit)]
    for radius, wanted in F1.items():
        f1 = scores[f"{radius:g}"]["f1"] or 0.0
        figures.append((f"F1 within {radius:g} px", f"{f1:.2f}", f"{wanted:.2f} or more", f1 >= wanted))
    rows = [(name, value, target, "yes" if ok else "no") for name, value, target, ok in figures]
    rows.append(("MSE (root of the mean square)", f"{rmse:.1f}", "", ""))
    text = f"{markdown(HEAD, counts)}\n{markdown(('figure', 'measured', 'should be', 'reached'), rows)}"
    with atomic_write(out / "results.md") as partial:
        partial.write_text(text, encoding="utf-8")

    trained, epochs = list_images(data / "train"), read_json_lines(run / "metrics.jsonl")
    fullest = max(trained, key=lambda path: len(read_points(points_path(path))))
    gaussians, size = Gaussians2D.load(gaussians_path(fullest)), image_size(fullest)
    truths = [truth_density(np.array(line["points"]), line["height"], line["width"])[::4, ::4] for line in tested]
    write_page(
        out / "index.html",
        "demo.html",
        figures=figures,
        trained=len(trained),
        epochs=len(epochs),
        curve=curve(epochs),
        size=size,
        photograph=base64.b64encode(fullest.read_bytes()).decode(),
        ellipses=torch.cat([gaussians.means, gaussians.scales, gaussians.rotations.rad2deg()], dim=1).tolist(),
        owners=png(draw_owners(gaussians, size, run)),
        tested=list(zip(tested, draw_densities(truths), draw_densities(list(map(cells, tested))))),
        head=HEAD,
        counts=counts,
    )
    print(text, end="")
    missed = [name for name, _, _, ok in figures if not ok]
    print("reached: " + ("everything that the demo should reach" if not missed else f"not {', not '.join(missed)}"))
    print(f"now open {out / 'index.html'} in a browser; every test image: {out / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
