"""The demo's last step: its numbers beside what they should reach, the page that walks through the method, two pictures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

from GS2D.fitting import FitConfig, fit_image
from GS2D.gaussians import Gaussians2D
from GS2D.process_gaussians import clean
from scripts.demo_page import CELL, Tested, overview, owner_colors, write_page
from scripts.experiments import guess_counts
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import Result, mae_mse
from utils.evaluation.figures import save_gaussians_figure
from utils.evaluation.localisation import localisation_scores
from utils.files import atomic_write, gaussians_path, list_images, points_path, read_points
from utils.images import load_image

KERNEL_NAMES = ("background_ratio", "cut_off", "post_min", "post_max", "scale_ratio")
# What the demo should reach: MAE as a share of the mean count, F1 at half a nucleus' radius and more, and at its radius.
MAE_SHARE, F1 = 0.06, {8.0: 0.5, 12.0: 0.75}


def read_tested(data: Path, out: Path) -> list[Tested]:
    """The test images with what test.py left of them in ``out``."""
    lines = (out / "report_data.jsonl").read_text(encoding="utf-8").splitlines()
    heads = {line["image"]: np.array(line["heads"]).reshape(-1, 2) for line in map(json.loads, lines)}
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        counts = {row["image"]: float(row["predicted"]) for row in csv.DictReader(file)}
    tested = []
    for path in list_images(data / "test"):
        density = np.load(out / "densities" / f"{path.stem}.npy", allow_pickle=False)
        name, points = path.stem, read_points(points_path(path))[:, :2]
        tested.append(Tested(name, load_image(path), points, heads[name], density, counts[name]))
    return tested


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
    options = {"stride": CELL, **{name: settings[name] for name in KERNEL_NAMES}}

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
    owners = owner_colors(fitted, *shown.image.shape[:2], options)
    with atomic_write(out / "overview.jpg") as partial:
        partial.write_bytes(overview(shown.image, fitted, owners, shown.density))


if __name__ == "__main__":
    run_script(main)
