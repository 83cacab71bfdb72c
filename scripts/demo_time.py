"""How long the demo will take on this machine, from a measured second of its network."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from models import build_model
from utils.cli import run_script

MEASURED = 1.0  # seconds of steps
FOR_EACH_STEP = 1.15  # of the network's time: optimizer, kernel, loading
EVALUATED = 2**23  # pixels through the network without gradient: calibration, validation and test photographs
BESIDES = 60  # seconds: preparing, fitting, the pages


def seconds_of_a_step(crop_size: int) -> float:
    """Of forward and backward pass of one crop: the median over a second, behind a first step that warms up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, crop = build_model("vgg").to(device), torch.rand(1, 3, crop_size, crop_size, device=device)
    times = [time.perf_counter()]
    while len(times) < 5 or times[-1] - times[1] < MEASURED:
        total = network(crop).density.sum()
        total.backward()
        total.item()  # waits for a GPU
        times.append(time.perf_counter())
    return statistics.median(end - begin for begin, end in zip(times[1:], times[2:]))


def main() -> None:
    """Print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="recipe of the training")
    parser.add_argument("--images", type=int, required=True, help="training photographs")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    crop, steps = recipe["crop_size"], recipe["epochs"] * arguments.images
    step = seconds_of_a_step(crop)
    training = FOR_EACH_STEP * step * steps
    all_of_it = training + EVALUATED / crop**2 * step / 3 + BESIDES
    print(
        f"about {all_of_it / 60:.0f} minutes on this machine: {steps} steps of training take {training / 60:.1f} of them"
    )


if __name__ == "__main__":
    run_script(main)
