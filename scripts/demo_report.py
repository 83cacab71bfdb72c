"""The demo's last step: a results table beside the simplest predictor, and the fitted Gaussians of one image."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from GS2D.gaussians import Gaussians2D
from scripts.experiments import guess_counts, read_counts
from utils.cli import run_script
from utils.config import make_parser
from utils.evaluation import mae_mse
from utils.evaluation.figures import save_gaussians_figure
from utils.files import atomic_write, gaussians_path, list_images, points_path, read_points
from utils.images import load_image


def main() -> None:
    """Write results.md and gaussians.png beside the results.csv of test.py."""
    parser = make_parser("Table and picture of the demo.")
    for option in ("--data-dir", "--out"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()

    fullest = max(list_images(arguments.data_dir / "train"), key=lambda path: len(read_points(points_path(path))))
    gaussians = Gaussians2D.load(gaussians_path(fullest))
    arrays = (t.numpy() for t in (gaussians.means, gaussians.scales, gaussians.rotations))
    save_gaussians_figure(arguments.out / "gaussians.png", load_image(fullest), *arrays)

    results, guesses = read_counts(arguments.out / "results.csv"), guess_counts(arguments.data_dir, "test")
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
    print(f"open {arguments.out}/report.html; look at results.md, gaussians.png and figures/")


if __name__ == "__main__":
    run_script(main)
