"""Cost of fitting Gaussians, by backend; a time includes drawing, loss, backward pass, chain rule and optimiser step.

    python benchmarks/bench_splat.py                  on one core: nanoseconds for each covered pixel-Gaussian pair and iteration
    python benchmarks/bench_splat.py --device cuda    many images at once, by gsplat, beside the native engine on all cores

A pair is covered when the pixel lies within the Gaussian's 1/255 footprint, an ellipse of 34.8 s1 s2 pixels. Scenes are
generated: random means, standard deviations of 3 to 7 px, on an image that grows with their number.
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

SIZES = {50: (384, 512), 800: (1024, 1536), 5000: (2048, 3072), 20000: (2048, 3072)}  # Gaussians -> height, width
TOGETHER = 1, 16, 32, 64  # images
STANDING = 1e-9  # learning rate: every step is done, but scales, and so the number of pairs, stay what they are
FOOTPRINT = 2 * math.pi * math.log(255)  # pixels of a Gaussian with s1 = s2 = 1: the ellipse q <= log 255
DRAWN = 5000  # Gaussians of the largest scene that the reference draws


@functools.cache
def scene(count: int, seed: int) -> tuple[Problem, float]:
    """An image with Gaussians of 3 to 7 px in the middle of a fit, and how many pairs they cover."""
    height, width = SIZES[count]
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
    means = random.uniform((0, 0), (width, height), (count, 2)).astype(np.float32)
    scales = random.uniform(3, 7, (count, 2))
    start = np.c_[means, scales - 1, random.uniform(-1, 1, (count, 4))].astype(np.float32)
    problem = Problem(image, foreground(means, height, width), torch.from_numpy(start), count, count)
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
    taken = [fit(count, images, many, backend) - fit(count, images, few, backend) for _ in range(repeats)]
    return statistics.median(taken) / (many - few)


def on_one_core() -> None:
    """Print what an iteration of each backend takes."""
    print("| Gaussians | backend | ms an iteration | ns a pair |\n|---:|---|---:|---:|")
    for count in SIZES:
        pairs = scene(count, 0)[1]
        # About half a second of work for the native engine, a few iterations for the reference.
        for backend, iterations, repeats in (("native", max(10, int(1e8 / pairs)), 5), ("reference", 3, 1)):
            if backend == "native" or count <= DRAWN:
                took = seconds_per_iteration(count, 1, iterations, backend, repeats)
                print(f"| {count} | {backend} | {1e3 * took:.3f} | {1e9 * took / pairs:.2f} |", flush=True)


def side_by_side(count: int, backend: str, iterations: int) -> None:
    """Print what an iteration of one image takes where many are fitted at once, and two a core by the native engine."""
    cores = default_workers()
    print(f"| {count} Gaussians | ms an image and iteration |\n|---|---:|")
    for images in TOGETHER:
        took = seconds_per_iteration(count, images, iterations, backend, 3) / images
        print(f"| {images} images, {backend} | {1e3 * took:.3f} |", flush=True)
    took = seconds_per_iteration(count, 2 * cores, 500, "native", 1) / (2 * cores)
    print(f"| native, {cores} cores | {1e3 * took:.3f} |")


def main() -> None:
    """Print the table of the device."""
    if common.parse_device(__doc__) == "cuda":
        side_by_side(800, "gsplat", 100)
    else:
        on_one_core()


if __name__ == "__main__":
    main()
