"""Cost of each loss in one training step, beside the network's.

    python benchmarks/bench_losses.py --points 50 300 1000 3000 --crop 512 --out losses.png

Per loss and number of points: median milliseconds of the loss, with the plan that it iterates for, and the gradient of the density,
and peak memory; then ratios of times to GST's and to one forward and backward pass of VGG19 on one crop. "kernel of gst" and of
the other losses that transport with a matrix known before training: what a loading process computes for a crop, on the CPU.
"dm-count (dense)" is DM-Count's plan as published; the loss itself exploits that its kernel is a product of one along x and one
along y.

Points are uniform in the crop, fitted scales log-normal around 5.5 px. Each round runs everything once, so that the ratios
compare like with like on a busy machine. Memory: tensors and arrays alive at once beyond the inputs. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from bench_transport import batch_of, milliseconds, peak_megabytes, scene, sinkhorn

from losses import KERNELS, LOSSES, build_kernel, build_loss
from models import build_model
from utils.files import atomic_write

VARIANTS = [*LOSSES, "dm-count (dense)", *(f"kernel of {name}" for name in KERNELS)]
NETWORK = "VGG19"


def loss_steps(points: int, crop: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is measured of each loss: its value and its gradient by the density, and its kernel."""
    means, scales, rotations, density = scene(points, crop, device)
    density.requires_grad_()
    columns = means.cpu(), scales.cpu(), rotations.cpu()
    kernels = {name: lambda make=build_kernel(name): make(*columns, crop, crop) for name in KERNELS}
    batches = {
        name: batch_of(means, scales, rotations, kernels[name]() if name in kernels else None, crop) for name in LOSSES
    }

    def step(loss: Callable) -> None:
        density.grad = None
        loss().backward()

    losses = {name: lambda name=name: build_loss(name)(density, batches[name]) for name in LOSSES}
    losses["dm-count (dense)"] = lambda: sinkhorn(means, density, crop)
    steps = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
    return steps | {f"kernel of {name}": kernel for name, kernel in kernels.items()}


def network_step(crop: int, device: torch.device) -> Callable[[], None]:
    """One forward and backward pass of the network, random weights, on one crop."""
    model = build_model("vgg").to(device)
    images = torch.randn(1, 3, crop, crop, generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(images).density.sum().backward()

    return step


def save_plot(path: Path, points: list[int], times: dict[str, list[float]], network: float, where: str) -> None:
    """Milliseconds over the number of points, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, values in times.items():
        axes.plot(points, values, "o-", label=name, linewidth=3 if name == "gst" else 1.5)
    axes.axhline(network, color="black", linestyle="--", label=f"{NETWORK}, forward and backward")
    axes.set(xscale="log", yscale="log", xlabel="annotations in the crop", ylabel="ms per step", title=where)
    axes.set_xticks(points, [str(count) for count in points], minor=False)
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=150, bbox_inches="tight", format="png")
    pyplot.close(figure)


def main() -> None:
    """Print the table and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[50, 300, 1000, 3000], help="annotations in the crop")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop, pixels (default: 512)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of which the median counts (default: 7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="PNG file for the plot (default: none)")
    arguments = parser.parse_args()
    if min(*arguments.points, arguments.repeats, arguments.threads) < 1 or arguments.crop < 16 or arguments.crop % 16:
        parser.error("--points, --repeats and --threads must be at least 1, --crop a multiple of 16")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: no CUDA GPU here; use --device cpu")

    torch.set_num_threads(arguments.threads)
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    where = f"torch {torch.__version__}, {where}, crop {arguments.crop}, median of {arguments.repeats}"
    network = network_step(arguments.crop, device)
    runs = {count: loss_steps(count, arguments.crop, device) for count in arguments.points}
    for run in (network, *(run for steps in runs.values() for run in steps.values())):
        run()
    rounds = []
    for _ in range(arguments.repeats):
        taken = {(count, name): milliseconds(run, device) for count in runs for name, run in runs[count].items()}
        rounds.append({NETWORK: milliseconds(network, device), **taken})
    median = {key: statistics.median(taken[key] for taken in rounds) for key in rounds[0]}

    print(f"{where}\n\n| points | loss | ms | MB | / gst | / {NETWORK} |\n|---:|---|---:|---:|---:|---:|")
    for count, steps in runs.items():
        for name, run in steps.items():
            time, memory = median[count, name], peak_megabytes(run, device)
            ratios = f"{time / median[count, 'gst']:.1f} | {time / median[NETWORK]:.4f}"
            print(f"| {count} | {name} | {time:.2f} | {memory:.1f} | {ratios} |")
    print(f"| | {NETWORK} | {median[NETWORK]:.0f} | {peak_megabytes(network, device):.0f} | | 1 |")
    if arguments.out:
        times = {name: [median[count, name] for count in runs] for name in VARIANTS}
        save_plot(arguments.out, list(runs), times, median[NETWORK], where)


if __name__ == "__main__":
    main()
