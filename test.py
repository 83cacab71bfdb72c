"""Evaluate a checkpoint: MAE, MSE and the count of every image.

python test.py --save-path runs/qnrf_vgg/best_model.pth --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import csv
from pathlib import Path

from tqdm import tqdm

from datasets.crowd import Crowd
from models import MODELS, build_model, load_weights, read_checkpoint
from utils.checkpoint import describe
from utils.cli import progress_options, run_script
from utils.config import make_parser, number, parse_arguments
from utils.device import single_device
from utils.evaluation import evaluate, mae_mse
from utils.files import atomic_write, make_folder


def main() -> None:
    """Load, count, report."""
    parser = make_parser("Evaluate a checkpoint of this project or of the authors.")
    add = parser.add_argument
    add(
        "--save-path",
        "--save-dir",
        type=Path,
        required=True,
        help="a .pth or .tar file, or a run's folder (its best_model.pth)",
    )
    add("--data-dir", type=Path, required=True, help="prepared data set")
    add("--split", choices=("test", "val", "train"), default="test", help="split to count")
    add("--model-name", choices=tuple(MODELS), help="network (default: what the file says of itself)")
    add(
        "--topk",
        type=number(float, 0, 1, above=True),
        help="vgg_trans: share of neighbours (default: the file's, or 0.3)",
    )
    add("--device", default="auto", help="GPU id or cpu; auto: the first GPU if there is one")
    add("--window", type=number(int, 16), default=512, help="side of the windows that an image is cut into, pixels")
    add("--out", type=Path, help="folder for results.csv (image, truth, predicted, error)")
    arguments = parse_arguments(parser)

    path = arguments.save_path / "best_model.pth" if arguments.save_path.is_dir() else arguments.save_path
    said = describe(read_checkpoint(path))
    model = build_model(
        arguments.model_name or said["model_name"],
        topk=arguments.topk or said.get("topk", 0.3),
        usenum=said.get("usenum", 18),
    )
    load_weights(model, path)
    device = single_device(arguments.device)
    images = Crowd(arguments.data_dir, None, arguments.split, training=False)
    samples = (images[i] for i in tqdm(range(len(images)), desc=arguments.split, unit="img", **progress_options()))
    results = evaluate(model.to(device), samples, device, arguments.window)

    for result in results:
        print(f"{result.name}: truth {result.truth:g}, predicted {result.predicted:.2f}")
    mae, mse = mae_mse(results)
    print(f"{len(results)} images: MAE {mae:.3f}, MSE {mse:.3f} (MSE: root of the mean squared error)")
    if arguments.out:
        with atomic_write(make_folder(arguments.out) / "results.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "truth", "predicted", "error"))
            writer.writerows(
                (r.name, f"{r.truth:g}", f"{r.predicted:.4f}", f"{r.predicted - r.truth:.4f}") for r in results
            )


if __name__ == "__main__":
    run_script(main)
