"""Cost of one training step's transport kernel, loss and gradient, beside a dense kernel and Sinkhorn iterations.

    python benchmarks/bench_transport.py --points 50 300 1000 3000 --crop 512

Per number of points, median milliseconds and peak memory of

* kernel: `transport_kernel` on the CPU, which a loading process makes beside decoding an image, on one core;
* loss: `transported_mass_loss` of that kernel and the gradient of the density, all that a training step does;
* product: the same two products with plain `torch.sparse_csr` tensors, the bound on what the loss can do;
* dense: `dense_transport_kernel` and its product, and the gradient;
* sinkhorn: the transport plan of DM-Count (Wang et al., NeurIPS 2020), 100 iterations, and its gradient.

Points are uniform in the crop, fitted scales log-normal around 5.5 px (two thirds within 3 to 10 px). Each round runs
all of them, so that the ratios compare like with like on a busy machine. Memory: tensors and arrays alive at once beyond the
inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.crowd import Batch, TrainSample, collate  # noqa: E402
from GS2D.kernel import dense_transport_kernel, transport_kernel  # noqa: E402
from losses.transport import transported_mass_loss  # noqa: E402

STRIDE = 8


def scene(points: int, crop: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random means, scales, rotations and a density [1, 1, h, w] whose sum is about the number of points."""
    random = torch.Generator().manual_seed(points)
    means = torch.rand(points, 2, generator=random) * crop
    scales = torch.exp(torch.randn(points, 2, generator=random) * 0.6 + math.log(5.5))
    rotations = torch.rand(points, 1, generator=random) * math.pi
    cells = crop // STRIDE
    density = torch.rand(1, 1, cells, cells, generator=random) * (2 * points / cells**2)
    return tuple(value.to(device) for value in (means, scales, rotations, density))


def batch_of(means: Tensor, scales: Tensor, rotations: Tensor, kernel: Tensor | None, crop: int) -> Batch:
    """The crop as the loader gives it: targets of 1; on the device of ``means``."""
    columns = [value.cpu() for value in (means, scales, rotations)]
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    batch = collate([TrainSample(image, *columns, torch.ones(len(means)), "crop", float(crop), kernel)])
    moved = {name: getattr(batch, name).to(means.device) for name in ("points", "targets", "counts")}
    if kernel is not None:
        moved["kernel"] = type(batch.kernel)(*(part.to(means.device) for part in batch.kernel))
        moved["received"] = batch.received.to(means.device)
    return batch._replace(**moved)


def sinkhorn(means: Tensor, density: Tensor, crop: int, iterations: int = 100, regularisation: float = 10.0) -> Tensor:
    """<D, g> of DM-Count with g held constant; all iterations are run, as where its stopping rule does not apply."""
    cells = crop // STRIDE
    centres = (torch.arange(cells, device=means.device) + 0.5) * STRIDE
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    with torch.no_grad():
        total = density.sum()
        mass = (density / (total + 1e-6)).flatten()
        squared = (means[:, :1] - x.flatten()).square() + (means[:, 1:] - y.flatten()).square()  # [N, M]
        plan = torch.exp(-squared / regularisation)
        share = 1 / len(means)
        u = torch.full_like(means[:, 0], share)
        for _ in range(iterations):
            v = mass / (plan.T @ u + 1e-16)
            u = share / (plan @ v + 1e-16)
        beta = regularisation * torch.log(v + 1e-16)
        squared_total = total.square() + 1e-8
        gradient = beta * (total / squared_total) - (density.flatten() * beta).sum() / squared_total
    return (density.flatten() * gradient).sum()


def steps(points: int, crop: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is measured: the kernel, and what computes a loss and its gradient by the density."""
    means, scales, rotations, density = scene(points, crop, device)
    density.requires_grad_()
    target = torch.ones(points, device=device)
    arguments = means.cpu(), scales.cpu(), rotations.cpu(), crop
    batch = batch_of(means, scales, rotations, transport_kernel(*arguments, stride=STRIDE), crop)
    sizes = (points + 1, (crop // STRIDE) ** 2)
    matrix = torch.sparse_csr_tensor(*batch.kernel[:3], sizes, check_invariants=False)
    transposed = torch.sparse_csr_tensor(*batch.kernel[3:], sizes[::-1], check_invariants=False)

    def kernel() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        transport_kernel(*arguments, stride=STRIDE)
        torch.set_num_threads(threads)

    def product() -> None:
        with torch.no_grad():
            residual = batch.received - matrix @ density.flatten()
            density.grad = -(transposed @ residual.sign()).view_as(density)
            residual.abs().sum()

    def dense() -> Tensor:
        transported = dense_transport_kernel(means, scales, rotations, crop, stride=STRIDE) @ density.flatten()
        return (target - transported[:-1]).abs().sum() + transported[-1].abs()

    losses = {
        "loss": lambda: transported_mass_loss(density, batch),
        "dense": dense,
        "sinkhorn": lambda: sinkhorn(means, density, crop),
    }

    def step(name: str) -> None:
        density.grad = None
        losses[name]().backward()

    runs = {name: lambda name=name: step(name) for name in losses}
    return {"kernel": kernel, "product": product, **runs}


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall time of one run, the second in a row: the first wakes threads and fills caches that another computation emptied."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - begin)


def peak_megabytes(run: Callable[[], None], device: torch.device) -> float:
    """Largest total size of the tensors that one run allocates; on a CPU plus that of NumPy's arrays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    alive = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    tracemalloc.start()  # in a run of its own, which it slows down
    run()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak + arrays) / 1e6


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ part reports its starts and stops there."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved), os.close(nowhere)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[50, 300, 1000, 3000], help="annotations in the crop")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop, pixels (default: 512)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of which the median counts (default: 15)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    if min(arguments.points) < 1 or arguments.crop < STRIDE or arguments.repeats < 1:
        parser.error(f"--points and --repeats must be at least 1, --crop at least {STRIDE}")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: no CUDA GPU here; use --device cpu")

    # In training the network's activations have taught the C library's allocator to keep what is freed. Without them each
    # step would ask the system for its memory again, which costs a quarter of the time. 32 MiB is the most that counts.
    torch.empty((32 << 20) - 4096, dtype=torch.uint8).fill_(0)
    names = ["kernel", "loss", "product", "dense", "sinkhorn"]
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, {where}, crop {arguments.crop}, stride {STRIDE}, median of {arguments.repeats}")
    header = "".join(f"{name:>23}" for name in names)
    print(f"points{header}    sinkhorn/loss  dense/loss: time  memory")
    for points in arguments.points:
        runs = steps(points, arguments.crop, device)
        for run in runs.values():
            run()
        rounds = [{name: milliseconds(runs[name], device) for name in names} for _ in range(arguments.repeats)]
        time_of = {name: statistics.median(taken[name] for taken in rounds) for name in names}
        memory = {name: peak_megabytes(runs[name], device) for name in names}
        columns = "".join(f"{time_of[name]:10.2f} ms {memory[name]:6.1f} MB" for name in names)
        cheaper = f"{time_of['sinkhorn'] / time_of['loss']:17.1f}{time_of['dense'] / time_of['loss']:18.1f}"
        print(f"{points:>6}{columns}{cheaper}{memory['dense'] / memory['loss']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
