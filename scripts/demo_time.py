"""How long the demo will take on this machine, from a few measured steps of its network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from benchmarks.common import milliseconds
from models import build_model
from utils.cli import run_script

FOR_EACH_STEP = 1.15  # of the network's time: optimizer, kernel, loading
EVALUATED = 2**23  # pixels through the network without gradient: calibration, validation and test photographs
BESIDES = 60  # seconds: preparing, fitting, the pages


def seconds_of_a_step(crop_size: int) -> float:
    """Of forward and backward pass of one crop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, crop = build_model("vgg").to(device), torch.rand(1, 3, crop_size, crop_size, device=device)
    return milliseconds(lambda: network(crop).density.sum().backward(), device, 5) / 1000


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
    minutes = (training + EVALUATED / crop**2 * step / 3 + BESIDES) / 60
    print(f"about {minutes:.0f} minutes on this machine: {steps} steps of training take {training / 60:.1f} of them")


if __name__ == "__main__":
    run_script(main)
