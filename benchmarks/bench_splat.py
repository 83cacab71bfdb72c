"""Cost of fitting Gaussians: nanoseconds for each covered pixel-Gaussian pair and iteration, by backend.

    python benchmarks/bench_splat.py [--gaussians 50 800 5000 20000] [--backends native reference gsplat] [--atlas 1 4 16 64]

A pair is covered when the pixel lies within the Gaussian's 1/255 footprint, an ellipse of 34.8 s1 s2 pixels. A time includes
drawing, loss, backward pass, chain rule and optimiser step. Scenes are generated: random means, standard deviations of 3 to
7 px, on an image that grows with their number. Also: the gain from a second worker, and what UCF-QNRF's training images
would take. Then many images in one atlas, on the GPU if there is one, beside the native engine on all cores: milliseconds an
image and iteration, and UCF-QNRF's images an hour.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from GS2D.atlas import Atlas, Entry
from GS2D.fitting import MAX_RATIO, SHAPE_WEIGHT, FitConfig, Parameters, foreground, optimise
from GS2D.rasterize import resolve_backend
from utils.cli import default_workers

SIZES = {50: (384, 512), 800: (1024, 1536), 5000: (2048, 3072), 20000: (2048, 3072)}  # Gaussians -> height, width
STANDING = (
    1e-9  # learning rate: the work of every step is done, but scales, and so the number of pairs, stay what they are
)
FOOTPRINT = 2 * math.pi * math.log(255)  # pixels of a Gaussian with s1 = s2 = 1: the ellipse q <= log 255
# UCF-QNRF (Idrees et al., ECCV 2018): 1,251,642 annotations in 1535 images, 1081 of which are usually trained on.
QNRF_IMAGES, QNRF_POINTS_PER_IMAGE = 1081, 815


def scene(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, Parameters, float]:
    """An image, its foreground, Gaussians of 3 to 7 px in the middle of a fit, and how many pairs they cover."""
    height, width = SIZES.get(count, (2048, 3072))
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
    means = random.uniform((0, 0), (image.shape[1], image.shape[0]), (count, 2)).astype(np.float32)
    scales = random.uniform(3, 7, (count, 2))
    others = random.uniform(-1, 1, (count, 1)), random.uniform(-1, 1, (count, 3))
    tensors = (torch.from_numpy(np.asarray(a, np.float32)) for a in (means, scales - 1, *others))
    pairs = FOOTPRINT * scales.prod(axis=1).sum()
    return image, foreground(means, *image.shape[:2]), Parameters(*tensors), pairs


def seconds_per_iteration(count: int, backend: str, repeats: int) -> tuple[float, float]:
    """(median seconds of an iteration, covered pairs); a longer and a shorter fit, so that the start does not count."""
    image, mask, start, pairs = scene(count, seed=count)
    # About half a second of work for the native engine, a few iterations for the others.
    few, many = (5, 5 + max(10, int(1e8 / pairs))) if backend == "native" else (1, 4)
    synchronize = torch.cuda.synchronize if backend == "gsplat" else lambda: None

    def run(iterations: int) -> float:
        begin = time.perf_counter()
        optimise(image, mask, start, count, FitConfig(iterations, learning_rate=STANDING), backend)
        synchronize()
        return time.perf_counter() - begin

    run(1)
    return statistics.median((run(many) - run(few)) / (many - few) for _ in range(repeats)), pairs


def throughput(workers: int, count: int, fits: int, iterations: int = 2000) -> float:
    """Fits in a second of scenes with ``count`` Gaussians, by ``workers`` threads."""
    scenes = [scene(count, seed) for seed in range(workers)]

    def fit(index: int) -> None:
        image, mask, start, _ = scenes[index % workers]
        optimise(image, mask, start, count, FitConfig(iterations, learning_rate=STANDING), "native")

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        begin = time.perf_counter()
        list(pool.map(fit, range(fits)))
        return fits / (time.perf_counter() - begin)


def full_atlas(images: int, scenes: list, backend: str) -> Atlas:
    """An atlas of so many images, the scenes in turn; on the current GPU for gsplat."""
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "gsplat" else torch.device("cpu")
    atlas = Atlas(backend, device, SHAPE_WEIGHT, MAX_RATIO)
    chosen = [scenes[index % len(scenes)] for index in range(images)]
    atlas.hold([Entry(image, mask, torch.cat(start, dim=1), len(start.means)) for image, mask, start, _ in chosen])
    return atlas


def atlas_seconds(atlas: Atlas, iterations: int) -> float:
    """Median seconds of an iteration of all images together; every run ends with the losses on the host."""
    times = []
    atlas.advance(max(1, iterations // 3), STANDING)
    for _ in range(3):
        begin = time.perf_counter()
        atlas.advance(iterations, STANDING)
        times.append((time.perf_counter() - begin) / iterations)
    return statistics.median(times)


def compare_atlas(counts: list[int]) -> None:
    """Print what an image and iteration cost side by side, and on all cores, with UCF-QNRF's images an hour."""
    gpu = torch.cuda.is_available() and resolve_backend("auto", "cuda") == "gsplat"
    backend, gaussians, iterations = ("gsplat", 800, 30) if gpu else ("reference", 50, 2)
    scenes = [scene(gaussians, seed) for seed in range(8)]
    height, width = SIZES[gaussians]
    print(f"atlas of images with {gaussians} Gaussians on {width} x {height} pixels, {backend}")

    def line(what: str, seconds: float) -> None:
        hourly = 3600 / (seconds * 4000 * QNRF_POINTS_PER_IMAGE / 800)
        rate = f", {hourly:.0f} of UCF-QNRF's images an hour" if gaussians == 800 else ""
        print(f"{what:>24}: {seconds * 1e3:8.3f} ms an image and iteration{rate}", flush=True)

    for images in counts:
        line(f"{images} images side by side", atlas_seconds(full_atlas(images, scenes, backend), iterations) / images)
    cores = default_workers()
    line(f"native on {cores} cores", 1 / (throughput(cores, gaussians, 2 * cores, 500) * 500))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, nargs="+", default=list(SIZES), help="numbers of Gaussians")
    parser.add_argument(
        "--backends", nargs="+", default=["native", "reference"], choices=("native", "reference", "gsplat")
    )
    parser.add_argument(
        "--atlas", type=int, nargs="*", default=[1, 4, 16, 64], help="images side by side; none: no atlas"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference-up-to", type=int, default=5000, help="largest scene that the reference draws")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if torch.cuda.is_available() and "gsplat" not in arguments.backends:
        arguments.backends.append("gsplat")

    native: dict[int, float] = {}
    print(
        f"{'Gaussians':>9} {'image':>11} {'pairs':>11} {'backend':>10} {'ms/iteration':>13} {'ns/pair':>8} {'vs native':>9}"
    )
    for count in arguments.gaussians:
        for backend in arguments.backends:
            if backend == "reference" and count > arguments.reference_up_to:
                continue
            seconds, pairs = seconds_per_iteration(
                count, resolve_backend(backend), arguments.repeats if backend == "native" else 1
            )
            native.setdefault(count, seconds if backend == "native" else math.nan)
            height, width = SIZES.get(count, (2048, 3072))
            print(
                f"{count:9} {f'{width}x{height}':>11} {pairs:11.0f} {backend:>10} {seconds * 1e3:13.3f} "
                f"{seconds / pairs * 1e9:8.2f} {seconds / native[count]:9.1f}",
                flush=True,
            )
    if "native" in arguments.backends:
        pairs_of_speed = [(throughput(1, 800, 2), throughput(2, 800, 4)) for _ in range(3)]
        gain = statistics.median(two / one for one, two in pairs_of_speed)
        one = statistics.median(one for one, _ in pairs_of_speed)
        print(f"two workers do {gain:.2f} times the fits of one (800 Gaussians, 2000 iterations, {one:.2f} fits/s)")
        if 800 in native:
            hours = QNRF_IMAGES * native[800] * 4000 * QNRF_POINTS_PER_IMAGE / 800 / 3600
            print(
                f"UCF-QNRF at {native[800] / 800 * 1e6:.2f} us for each Gaussian and iteration: {hours:.1f} core hours for "
                f"{QNRF_IMAGES} images of {QNRF_POINTS_PER_IMAGE} points, {QNRF_IMAGES / hours * 2:.0f} images an hour on two cores"
            )
    if arguments.atlas:
        compare_atlas(arguments.atlas)


if __name__ == "__main__":
    main()
