"""How long the demo will take on this machine, from a few measured steps of its network."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import yaml

from benchmarks.common import milliseconds
from models import build_model
from utils.cli import run_script

RECIPE, IMAGES = ROOT / "configs" / "demo.yml", 14  # training photographs
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
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    crop, steps = recipe["crop_size"], recipe["epochs"] * IMAGES
    step = seconds_of_a_step(crop)
    training = FOR_EACH_STEP * step * steps
    minutes = (training + EVALUATED / crop**2 * step / 3 + BESIDES) / 60
    print(f"about {minutes:.0f} minutes on this machine: {steps} steps of training take {training / 60:.1f} of them")


if __name__ == "__main__":
    run_script(main)
