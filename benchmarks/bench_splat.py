"""Cost of fitting Gaussians: nanoseconds for each covered pixel-Gaussian pair and iteration, by backend.

    python benchmarks/bench_splat.py [--gaussians 50 800 5000 20000] [--atlas 1 4 16 64] [--device cuda]

A pair is covered when the pixel lies within the Gaussian's 1/255 footprint, an ellipse of 34.8 s1 s2 pixels. A time includes
drawing, loss, backward pass, chain rule and optimiser step. Scenes are generated: random means, standard deviations of 3 to
7 px, on an image that grows with their number. Then many images in one atlas, with ``--device cuda`` by gsplat, beside the
native engine on all cores: milliseconds an image and iteration, and UCF-QNRF's images an hour.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import common
from GS2D.fitting import FitConfig, Problem, fit_problems, foreground
from utils.cli import default_workers

SIZES = {50: (384, 512), 800: (1024, 1536)}  # Gaussians -> height, width; 2048 x 3072 for others
STANDING = 1e-9  # learning rate: every step is done, but scales, and so the number of pairs, stay what they are
FOOTPRINT = 2 * math.pi * math.log(255)  # pixels of a Gaussian with s1 = s2 = 1: the ellipse q <= log 255
QNRF_POINTS = 815  # in an image of UCF-QNRF (Idrees et al., ECCV 2018): 1,251,642 in 1535
ITERATIONS = 4000  # of a fit
DRAWN = 5000  # Gaussians of the largest scene that the reference draws


@functools.cache
def scene(count: int, seed: int) -> tuple[Problem, float]:
    """An image with Gaussians of 3 to 7 px in the middle of a fit, and how many pairs they cover."""
    height, width = SIZES.get(count, (2048, 3072))
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
    means = random.uniform((0, 0), (image.shape[1], image.shape[0]), (count, 2)).astype(np.float32)
    scales = random.uniform(3, 7, (count, 2))
    start = np.c_[means, scales - 1, random.uniform(-1, 1, (count, 4))].astype(np.float32)
    problem = Problem(image, foreground(means, *image.shape[:2]), torch.from_numpy(start), count, count)
    return problem, FOOTPRINT * scales.prod(axis=1).sum()


def fit(count: int, images: int, iterations: int, backend: str) -> float:
    """Seconds of a fit of so many images at once."""
    problems = [scene(count, seed % 8)[0] for seed in range(images)]
    begin = time.perf_counter()
    fit_problems(problems, FitConfig(iterations, learning_rate=STANDING), backend)
    return time.perf_counter() - begin


def seconds_per_iteration(count: int, images: int, iterations: int, backend: str, repeats: int) -> float:
    """Median seconds of an iteration; a longer and a shorter fit, so that the start does not count."""
    few, many = 1 + iterations // 4, 1 + iterations // 4 + iterations
    fit(count, images, 1, backend)
    taken = [(fit(count, images, many, backend), fit(count, images, few, backend)) for _ in range(repeats)]
    return statistics.median((long - short) / (many - few) for long, short in taken)


def main() -> None:
    """Print the tables."""
    parser = common.benchmark_parser(__doc__)
    add = parser.add_argument
    add("--gaussians", type=common.COUNT, nargs="*", default=[50, 800, 5000, 20000], help="numbers of Gaussians")
    add("--atlas", type=common.COUNT, nargs="*", default=[1, 4, 16, 32, 64], help="images side by side; none: no atlas")
    add("--repeats", type=common.COUNT, default=5, help="native fits of which the median counts (default: 5)")
    arguments = common.parse_benchmark(parser)
    torch.set_num_threads(1)
    print("| Gaussians | backend | ms an iteration | ns a pair |\n|---:|---|---:|---:|")
    for count in arguments.gaussians:
        pairs = scene(count, 0)[1]
        # About half a second of work for the native engine, a few iterations for the reference.
        runs = {"native": (max(10, int(1e8 / pairs)), arguments.repeats), "reference": (3, 1)}
        for backend in ("native", "reference") if count <= DRAWN else ("native",):
            iterations, repeats = runs[backend]
            took = seconds_per_iteration(count, 1, iterations, backend, repeats)
            print(f"| {count} | {backend} | {1e3 * took:.3f} | {1e9 * took / pairs:.2f} |", flush=True)
    if not arguments.atlas:
        return
    count, backend, iterations = (800, "gsplat", 100) if arguments.device == "cuda" else (50, "reference", 2)
    print(f"\n| {count} Gaussians | ms an image and iteration | images of UCF-QNRF an hour | |\n|---|---:|---:|---|")

    def line(what: str, seconds: float) -> None:
        hourly = 3600 / (seconds * ITERATIONS * QNRF_POINTS / count)
        figure = f"{1e3 * seconds:.3f} | {hourly:.0f}"
        if what.startswith("32 images"):
            common.print_goal(what, seconds <= 2e-4, figure, "0.2 ms with 800 Gaussians")
        else:
            print(f"| {what} | {figure} | |", flush=True)

    for images in arguments.atlas:
        line(f"{images} images, {backend}", seconds_per_iteration(count, images, iterations, backend, 3) / images)
    cores = default_workers()
    line(f"native, {cores} cores", seconds_per_iteration(count, 2 * cores, 500, "native", 1) / (2 * cores))


if __name__ == "__main__":
    main()
