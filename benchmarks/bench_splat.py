"""Cost of fitting Gaussians, by backend; a time includes drawing, loss, backward pass, chain rule and optimiser step.

    python benchmarks/bench_splat.py                  on one core: nanoseconds for each covered pixel-Gaussian pair and iteration
    python benchmarks/bench_splat.py --device cuda    many images in one atlas, by gsplat, beside the native engine on all cores

A pair is covered when the pixel lies within the Gaussian's 1/255 footprint, an ellipse of 34.8 s1 s2 pixels. Scenes are
generated: random means, standard deviations of 3 to 7 px, on an image that grows with their number.
"""

from __future__ import annotations

import concurrent.futures
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
from GS2D.atlas import Atlas, Entry
from GS2D.fitting import MAX_RATIO, SHAPE_WEIGHT, FitConfig, Parameters, Problem, fit_problems, foreground
from utils.cli import default_workers

SIZES = {50: (384, 512), 800: (1024, 1536), 5000: (2048, 3072), 20000: (2048, 3072)}  # Gaussians -> height, width
ATLAS = 1, 16, 32, 64  # images side by side
STANDING = 1e-9  # learning rate: every step is done, but scales, and so the number of pairs, stay what they are
FOOTPRINT = 2 * math.pi * math.log(255)  # pixels of a Gaussian with s1 = s2 = 1: the ellipse q <= log 255
DRAWN = 5000  # Gaussians of the largest scene that the reference draws


def scene(count: int, seed: int) -> Problem:
    """An image and Gaussians of 3 to 7 px in the middle of a fit."""
    height, width = SIZES[count]
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
    means = random.uniform((0, 0), (width, height), (count, 2)).astype(np.float32)
    columns = (
        means,
        random.uniform(2, 6, (count, 2)),
        random.uniform(-1, 1, (count, 1)),
        random.uniform(-1, 1, (count, 3)),
    )
    tensors = (torch.from_numpy(np.asarray(column, np.float32)) for column in columns)
    return Problem(image, foreground(means, height, width), Parameters(*tensors), count)


def fit(count: int, seed: int, iterations: int, backend: str) -> float:
    """Seconds of a fit."""
    problem, config = scene(count, seed), FitConfig(iterations, learning_rate=STANDING)
    begin = time.perf_counter()
    fit_problems([problem], config, backend)
    return time.perf_counter() - begin


def on_one_core() -> None:
    """Print an iteration of each backend; a longer and a shorter fit, so that the start does not count."""
    print("| Gaussians | backend | ms an iteration | ns a pair |\n|---:|---|---:|---:|")
    for count in SIZES:
        pairs = FOOTPRINT * float(scene(count, count).start.activate().scales.prod(dim=1).sum())
        for backend in ("native", "reference") if count <= DRAWN else ("native",):
            # About half a second of work for the native engine, three iterations for the other.
            few, many, repeats = (5, 15 + int(1e8 / pairs), 5) if backend == "native" else (1, 4, 1)
            fit(count, count, 1, backend)
            taken = [fit(count, count, many, backend) - fit(count, count, few, backend) for _ in range(repeats)]
            took = statistics.median(taken) / (many - few)
            print(f"| {count} | {backend} | {1e3 * took:.3f} | {1e9 * took / pairs:.2f} |", flush=True)


def full_atlas(images: int, count: int, backend: str) -> Atlas:
    """An atlas of so many images with ``count`` Gaussians; on the current GPU for gsplat."""
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "gsplat" else torch.device("cpu")
    atlas = Atlas(backend, device, SHAPE_WEIGHT, MAX_RATIO)
    scenes = [scene(count, seed) for seed in range(min(images, 8))]
    chosen = [scenes[index % len(scenes)] for index in range(images)]
    atlas.hold([Entry(one.image, one.mask, torch.cat(one.start, dim=1), count) for one in chosen])
    return atlas


def side_by_side(count: int, backend: str, iterations: int) -> None:
    """Print an iteration of images in an atlas, and of two images a core by the native engine."""
    print(f"| {count} Gaussians | ms an image and iteration |\n|---|---:|")
    for images in ATLAS:
        atlas = full_atlas(images, count, backend)
        took = common.milliseconds(functools.partial(atlas.advance, iterations, STANDING), "cpu", 3)
        print(f"| {images} images, {backend} | {took / iterations / images:.3f} |", flush=True)
    cores = default_workers()
    fit(count, 0, 1, "native")  # may build the engine
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda seed: fit(count, seed, 500, "native"), range(2 * cores)))
        took = 1000 * (time.perf_counter() - begin) / (2 * cores * 500)
    print(f"| native, {cores} cores | {took:.3f} |")


def main() -> None:
    """Print the table of the device."""
    if common.parse_device(__doc__) == "cuda":
        side_by_side(800, "gsplat", 30)
    else:
        on_one_core()


if __name__ == "__main__":
    main()
