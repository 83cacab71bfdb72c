"""What the benchmarks share: the device, random crops and pictures, times."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.crowd import Batch, TrainSample, collate
from GS2D.gaussians import Gaussians2D
from GS2D.points import mean_neighbour_distance
from losses import build_kernel
from utils.files import gaussians_path, points_path
from utils.images import save_jpeg


def parse_device(description: str) -> str:
    """The value of ``--device``; a usage error for a GPU that is not there. Prints what the figures are of."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'one CPU thread'}\n")
    torch.set_num_threads(1)
    return device


def milliseconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Median of single runs after one that does not count, from the host's call to the device's end."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(repeats + 1):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def random_annotations(points: int, crop: int) -> dict[str, np.ndarray]:
    """Uniform points, scales log-normal around 5.5 pixels, rotations."""
    random = np.random.default_rng([0, points])
    means = random.uniform(0, crop, (points, 2)).astype(np.float32)
    scales = np.exp(random.normal(np.log(5.5), 0.6, (points, 2))).astype(np.float32)
    return {"points": means, "scales": scales, "rotations": random.uniform(0, np.pi, (points, 1)).astype(np.float32)}


def random_batch(counts: Sequence[int], loss: str, crop: int, device: str = "cpu") -> tuple[Batch, Tensor]:
    """Crops with so many annotations and the kernels of a loss, and a density [B, 1, h, w] with sums near their numbers."""
    samples, make = [], build_kernel(loss)
    for points in counts:
        columns = random_annotations(points, crop)
        kernel = make(**columns, crop_size=crop, short_side=1.5 * crop) if make else None
        arrays = [torch.from_numpy(array) for array in (*columns.values(), np.ones(points, np.float32))]
        samples.append(TrainSample(torch.zeros(3, 16, 16, dtype=torch.uint8), *arrays, "", 1.5 * crop, kernel))
    batch, cells = collate(samples), crop // 8
    moved = {name: value.to(device) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    if batch.kernel is not None:
        moved["kernel"] = type(batch.kernel)(*(part.to(device) for part in batch.kernel))
    density = torch.rand(len(counts), 1, cells, cells, generator=torch.Generator().manual_seed(len(counts)))
    density *= (2 * torch.tensor(counts).clamp(min=1) / cells**2)[:, None, None, None]
    return batch._replace(**moved), density.to(device)


def loss_and_gradient(loss: Callable[..., Tensor], density: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The value, and its gradient by the density."""
    density = density.detach().requires_grad_()
    value = loss(density, batch)
    return value.detach(), torch.autograd.grad(value, density)[0]


def make_data(root: Path, images: int, width: int, points: int) -> Path:
    """A prepared data set of noise of a photograph's compressibility, two thirds as high as wide, one picture for val."""
    random, height = np.random.default_rng(0), width * 2 // 3
    for split, count in (("train", images), ("val", 1)):
        for i in range(count):
            image = root / split / f"IMG_{i:04}.jpg"
            gaussians_path(image).parent.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
            pixels += random.integers(-6, 7, pixels.shape, dtype=np.int16)
            save_jpeg(pixels.clip(0, 255).astype(np.uint8), image, 92)
            means = random.uniform(0, (width, height), (points, 2)).astype(np.float32)
            np.save(points_path(image), np.c_[means, mean_neighbour_distance(means)].astype(np.float32))
            scales = np.exp(random.normal(np.log(5.5), 0.6, (points, 2)))
            rotations, colors = random.uniform(0, 3, (points, 1)), np.ones((points, 3))
            Gaussians2D(means, scales, rotations, colors).save(gaussians_path(image))
    return root
