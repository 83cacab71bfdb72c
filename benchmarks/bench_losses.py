"""Cost of each loss in one training step, beside the network's and beside a dense kernel and Sinkhorn iterations.

    python benchmarks/bench_losses.py --points 50 300 1000 3000 --crop 512 [--device cuda]

Per loss and number of points in a crop: median milliseconds of the loss, with the plan that it iterates for, and the gradient of
the density, their ratios to GST's and to one forward and backward pass of VGG19 on one crop, and on a GPU the peak memory.
"kernel of gst" and of the other losses that transport with a matrix known before training: what a loading process computes for
a crop, on one core. "gst, dense": its twin, which makes the dense kernel in the step. "dm-count as published"
iterates on a dense matrix; the loss itself exploits that this is a product of one along x and one along y. Points are uniform, scales log-normal around 5.5 px. Prints Markdown.
"""

from __future__ import annotations

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

PUBLISHED, NETWORK = "dm-count as published", "VGG19"


def published_dm_count(density: Tensor, points: Tensor) -> Tensor:
    """DM-Count's loss (Wang et al., NeurIPS 2020) of one crop on the dense matrix exp(-C / 10) [N, M], reading back in each
    iteration whether all is finite and in every tenth whether to stop, as published."""
    cells, number = density.flatten(), len(points)
    centres = (torch.arange(density.shape[-1], device=points.device) + 0.5) * STRIDE
    with torch.no_grad():
        mass = cells / (cells.sum() + 1e-6)
        plan = (torch.cdist(points, torch.cartesian_prod(centres, centres).flip(1)).square() / -10).exp()
        u, v = torch.full_like(points[:, 0], 1 / number), torch.full_like(mass, 1 / len(mass))
        for iteration in range(1, 101):
            before = u, v
            v = mass / (plan.T @ u + 1e-16)
            u = 1 / number / (plan @ v + 1e-16)
            if not (u.isfinite().all() and v.isfinite().all()):
                u, v = before
                break
            if iteration % 10 == 0 and ((plan.T @ u) * v - mass).square().sum() <= 1e-9:
                break
        beta, total = 10 * (v + 1e-16).log(), cells.sum()
        scale = total.square() + 1e-8
        gradient = beta * total / scale - (cells * beta).sum() / scale
        column, row = (points / STRIDE).long().unbind(dim=1)
        dots = torch.zeros_like(mass)
        dots.index_add_(0, density.shape[-1] * row + column, torch.ones_like(points[:, 0]))
    variation = number * (cells / (cells.sum() + 1e-6) - dots / (number + 1e-6)).abs().sum()
    return (cells.sum() - number).abs() + 0.1 * (cells * gradient).sum() + 0.01 * variation


def steps(points: int, crop: int, device: str) -> dict[str, Callable[[], object]]:
    """What is measured with so many points in a crop, by name."""
    made: dict[str, Callable[[], object]] = {}
    for name in LOSSES:
        batch, density = common.random_batch((points,), name, crop, device)
        made[name] = lambda loss=build_loss(name), d=density, b=batch: common.loss_and_gradient(loss, d, b)
    batch, density = common.random_batch((points,), "gst", crop, device)
    arrays = common.random_annotations(points, crop)
    for name in KERNELS:
        made[f"kernel of {name}"] = lambda make=build_kernel(name): make(**arrays, crop_size=crop, short_side=crop)
    columns = [torch.from_numpy(array).to(device) for array in arrays.values()]

    def dense(density: Tensor, _) -> Tensor:
        transported = dense_transport_kernel(*columns, crop, stride=STRIDE) @ density.flatten()
        return (1 - transported[:-1]).abs().sum() + transported[-1].abs()

    made["gst, dense"] = lambda: common.loss_and_gradient(dense, density, batch)
    made[PUBLISHED] = lambda: common.loss_and_gradient(lambda d, b: published_dm_count(d, b.points[0]), density, batch)
    return made


def network_step(crop: int, device: str) -> Callable[[], None]:
    """One forward and backward pass of the network, random weights, on one crop."""
    model, images = build_model("vgg").to(device), torch.rand(1, 3, crop, crop, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(images).density.sum().backward()

    return step


def main() -> None:
    """Print the table."""
    parser = common.benchmark_parser(__doc__)
    parser.add_argument(
        "--points", type=common.COUNT, nargs="+", default=[50, 300, 1000, 3000], help="annotations in the crop"
    )
    parser.add_argument("--crop", type=common.COUNT, default=512, help="side of the crop, pixels (default: 512)")
    parser.add_argument("--repeats", type=common.COUNT, default=7, help="runs of which the median counts (default: 7)")
    arguments = common.parse_benchmark(parser)
    if arguments.crop % 16:
        parser.error(f"--crop {arguments.crop}: must be a multiple of 16")
    device, crop = arguments.device, arguments.crop
    print(f"| points | loss | ms | MB | / gst | / {NETWORK} |\n|---:|---|---:|---:|---:|---:|")
    network = common.milliseconds(network_step(crop, device), device, arguments.repeats)
    times: dict[int, dict[str, float]] = {}
    for points in arguments.points:
        times[points] = {}
        for name, run in steps(points, crop, device).items():
            threads, memory = torch.get_num_threads(), ""
            torch.set_num_threads(1 if name.startswith("kernel of") else threads)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            times[points][name] = took = common.milliseconds(run, device, arguments.repeats)
            if device == "cuda":
                memory = f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"
            torch.set_num_threads(threads)
            ratios = f"{took / times[points]['gst']:.1f} | {took / network:.4f}"
            print(f"| {points} | {name} | {took:.2f} | {memory} | {ratios} |", flush=True)
    print(f"| | {NETWORK} | {network:.0f} | | | 1 |\n\n| goal | figure | |\n|---|---|---|")
    slowest = max(some["gst"] for some in times.values())
    common.print_goal("cost: gst", slowest <= 0.5, f"{slowest:.2f} ms", "0.5 ms")
    ratio = min(some[PUBLISHED] / some["gst"] for some in times.values())
    common.print_goal(f"cost: {PUBLISHED}", ratio >= 20, f"{ratio:.0f} times gst", "20 times")


if __name__ == "__main__":
    main()
