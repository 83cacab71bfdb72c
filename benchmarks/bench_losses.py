"""Cost of each loss in one training step, beside the network's and beside a dense kernel.

    python benchmarks/bench_losses.py [--device cuda]

Per loss and number of points in a crop of 512: median milliseconds of the loss, with the plan that it iterates for, and the
gradient of the density, their ratio to GST's and to one forward and backward pass of VGG19 on one crop. "kernel of gst" and of
the other losses that transport with a matrix known before training: what a loading process computes for a crop, on one core.
"gst, dense": its twin, which makes the dense kernel in the step. Points are uniform, scales log-normal around 5.5 px.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import common
from GS2D.kernel import dense_transport_kernel
from losses import KERNELS, LOSSES, build_kernel, build_loss
from models import build_model
from utils.pixels import STRIDE

POINTS, CROP, REPEATS = (50, 300, 1000, 3000), 512, 7


def steps(points: int, device: str) -> dict[str, Callable[[], object]]:
    """What is measured with so many points in a crop, by name."""
    made: dict[str, Callable[[], object]] = {}
    for name in LOSSES:
        batch, density = common.random_batch((points,), name, CROP, device)
        made[name] = functools.partial(common.loss_and_gradient, build_loss(name), density, batch)
    arrays = common.random_annotations(points, CROP)
    for name in KERNELS:
        made[f"kernel of {name}"] = functools.partial(build_kernel(name), **arrays, crop_size=CROP, short_side=CROP)
    columns = [torch.from_numpy(array).to(device) for array in arrays.values()]

    def dense(density: Tensor, _) -> Tensor:
        transported = dense_transport_kernel(*columns, CROP, stride=STRIDE) @ density.flatten()
        return (1 - transported[:-1]).abs().sum() + transported[-1].abs()

    batch, density = common.random_batch((points,), "gst", CROP, device)
    made["gst, dense"] = functools.partial(common.loss_and_gradient, dense, density, batch)
    return made


def main() -> None:
    """Print the table."""
    device = common.parse_device(__doc__)
    model, images = build_model("vgg").to(device), torch.rand(1, 3, CROP, CROP, device=device)
    network = common.milliseconds(lambda: model(images).density.sum().backward(), device, REPEATS)
    print(f"| points | loss | ms | / gst | / VGG19 of {network:.0f} ms |\n|---:|---|---:|---:|---:|")
    for points in POINTS:
        times = {name: common.milliseconds(run, device, REPEATS) for name, run in steps(points, device).items()}
        for name, took in times.items():
            print(f"| {points} | {name} | {took:.2f} | {took / times['gst']:.1f} | {took / network:.4f} |", flush=True)


if __name__ == "__main__":
    main()
