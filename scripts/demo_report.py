"""The demo's last step: a results table beside the simplest predictor, and pictures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datasets.annotations import read_ucf
from datasets.crowd import Crowd
from datasets.images import load_image
from GS2D.gaussians import Gaussians2D
from models import build_model, load_weights, read_checkpoint
from utils.checkpoint import describe
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import Result, density_map, mae_mse, predict
from utils.figures import save_density_figure, save_gaussians_figure
from utils.files import atomic_write, gaussians_path, list_images, make_folder, points_path, read_points


def mean_density(raw_folder: Path) -> float:
    """Annotations per pixel, averaged over the raw training images."""
    densities = []
    for path in list_images(raw_folder):
        height, width = load_image(path).shape[:2]
        densities.append(len(read_ucf(path.with_name(f"{path.stem}_ann.mat"))) / (height * width))
    return float(np.mean(densities))


def main() -> None:
    """Write results.md and the pictures of the demo."""
    parser = make_parser("Table and pictures of the demo.")
    for option in ("--raw", "--data-dir", "--save-path", "--out"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    make_folder(arguments.out)

    fullest = max(list_images(arguments.data_dir / "train"), key=lambda path: len(read_points(points_path(path))))
    gaussians = Gaussians2D.load(gaussians_path(fullest))
    arrays = (t.numpy() for t in (gaussians.means, gaussians.scales, gaussians.rotations))
    save_gaussians_figure(arguments.out / "gaussians.png", load_image(fullest), *arrays)

    said = describe(read_checkpoint(arguments.save_path))
    model = build_model(said["model_name"], topk=said["topk"], usenum=said["usenum"]).eval()
    load_weights(model, arguments.save_path)
    constant = mean_density(arguments.raw / "Train")
    samples = Crowd(arguments.data_dir, None, "test", training=False)
    results, guesses = [], []
    for path, sample in zip(list_images(arguments.data_dir / "test"), samples):
        density = density_map(predict(model, sample.image)).numpy()
        picture = arguments.out / f"density_{path.stem}.png"
        save_density_figure(picture, path.stem, load_image(path), read_points(points_path(path)), density)
        results.append(Result(path.name, sample.count, float(density.sum())))
        guesses.append(Result(path.name, sample.count, constant * density.size))

    rows = [("image", "truth", "predicted", "mean density of the training images")]
    rows += [(r.name, f"{r.truth:g}", f"{r.predicted:.1f}", f"{g.predicted:.1f}") for r, g in zip(results, guesses)]
    rows += [
        (name, "", f"{mae_mse(results)[i]:.1f}", f"{mae_mse(guesses)[i]:.1f}") for i, name in enumerate(("MAE", "MSE"))
    ]
    lines = [" | ".join(row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    table = "\n".join(f"| {line} |" for line in lines)
    with atomic_write(arguments.out / "results.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    print(table)
    print(f"look at {arguments.out}/results.md, gaussians.png and density_*.png")


if __name__ == "__main__":
    run_script(main)
