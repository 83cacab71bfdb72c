"""Crops a second that loading processes make, and how long a training step waits for them.

    python benchmarks/bench_loading.py --sides 1024 2048 6000 --processes 1 2 4 8

Images are drawn noise of a photograph's compressibility, two thirds as high as wide, in a temporary folder; crops of 512 carry GST's
kernel of about ``--points`` annotations. "whole": an image is decoded by Pillow and all of it rescaled for each crop, annotations are
read from their files. "jpeg": the pieces under the crop are decoded (``utils.jpeg``), and only these are rescaled. "cold": the page
cache was asked to drop the files before. "A core" is by CPU time, the rest by the clock. The second table trains on one crop a step
that takes as long as said, with the last number of processes (a batch takes 1 to 2 ms to be handed over; on a GPU the thread that
pins memory does that).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets.crowd as crowd_module  # noqa: E402
import datasets.transforms as transforms  # noqa: E402
from datasets.crowd import Crowd, collate  # noqa: E402
from datasets.loading import crop_loader  # noqa: E402
from datasets.sampler import EpochSampler  # noqa: E402
from GS2D.gaussians import Gaussians2D  # noqa: E402
from utils.files import gaussians_path, points_path  # noqa: E402
from utils.images import save_jpeg  # noqa: E402
from utils.training.shared_memory import tensor_bytes  # noqa: E402

CROP = 512


def make_images(root: Path, side: int, count: int, points: int) -> None:
    """``count`` training images, ``side`` pixels wide, with so many annotations that a crop has about ``points``."""
    random = np.random.default_rng(0)
    height = side * 2 // 3
    people = round(points * side * height / CROP**2)
    for i in range(count):
        image = root / "train" / f"IMG_{i:04}.jpg"
        gaussians_path(image).parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (height // 8, side // 8, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (side, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels += random.integers(-6, 7, pixels.shape, dtype=np.int16)
        save_jpeg(pixels.clip(0, 255).astype(np.uint8), image, 92)
        places = (random.random((people, 2)) * (side, height)).astype(np.float32)
        np.save(points_path(image), np.c_[places, np.full(people, CROP / points**0.5, np.float32)].astype(np.float32))
        scales = np.exp(random.normal(np.log(5.5), 0.6, (people, 2)))
        Gaussians2D(places, scales, random.uniform(0, 3, (people, 1)), np.ones((people, 3))).save(gaussians_path(image))


def whole_image(path: Path) -> np.ndarray:
    """As it was done: Pillow decodes the image."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def whole_rescaled(image, augmentation, size):
    """As it was done: all of the image is rescaled."""
    height, width = (round(side * augmentation.scale) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized[augmentation.top : augmentation.top + size, augmentation.left : augmentation.left + size]


class Way:
    """One way to read: a context in which ``crowd`` reads so."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.crowd = name, Crowd(root, CROP, "train")
        if name != "whole":
            self.crowd.read_once()

    def __enter__(self) -> Crowd:
        self.saved = crowd_module.open_image, transforms.cut_out
        if self.name == "whole":
            crowd_module.open_image, transforms.cut_out = whole_image, whole_rescaled
        return self.crowd

    def __exit__(self, *_) -> None:
        crowd_module.open_image, transforms.cut_out = self.saved


def forget(folder: Path) -> None:
    """Ask the system to drop the files of ``folder`` from its page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alone(crowd: Crowd, seconds: float, cold: bool = False) -> float:
    """Crops a second without a loader: one pass by the clock where files are cold, else the median of passes by CPU time."""
    rates, begin, epoch = [], time.perf_counter(), 0
    clock = time.perf_counter if cold else time.process_time
    while not rates or (not cold and time.perf_counter() - begin < seconds):
        crowd.set_epoch(epoch := epoch + 1)
        start = clock()
        for index in range(len(crowd)):
            crowd[index]
        rates.append(len(crowd) / (clock() - start))
    return statistics.median(rates)


def steps(crowd: Crowd, processes: int, seconds: float, step: float = 0.0) -> tuple[float, float]:
    """Crops a second through a loader, and the share of the time for which a step of ``step`` seconds waits for its batch."""
    loader = crop_loader(crowd, EpochSampler(len(crowd), 1), 1, processes, 2, torch.device("cpu"))
    iterator, crops, waited, begin = iter(loader), 0, 0.0, 0.0
    while not begin or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        try:
            next(iterator)
        except StopIteration:
            iterator = iter(loader)
            continue
        if not begin:  # the first crop pays for the start of the processes
            begin = time.perf_counter()
            continue
        waited += time.perf_counter() - start
        crops += 1
        time.sleep(step)
    return crops / (time.perf_counter() - begin), waited / (time.perf_counter() - begin)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 6000], help="widths of images, pixels")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="loading processes")
    parser.add_argument("--steps", type=float, nargs="+", default=[5, 10, 20], help="lengths of a step, ms")
    parser.add_argument("--images", type=int, default=12, help="images of each size (default: 12)")
    parser.add_argument("--points", type=int, default=800, help="annotations in a crop (default: 800)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default: 3)")
    arguments = parser.parse_args()
    if min(arguments.sides) < 1024 or min(arguments.processes) < 1 or arguments.images < 1 or arguments.points < 1:
        parser.error(
            "--sides must be at least 1024, so that crops of 512 fit; --processes, --images and --points at least 1"
        )
    torch.set_num_threads(1)
    print(
        "| width | pixels | crops/s and core | cold |",
        *(f"{n} processes |" for n in arguments.processes),
        "KB a crop |",
    )
    print("|" + " --- |" * (5 + len(arguments.processes)))
    waits = []
    for side in arguments.sides:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_images(root, side, arguments.images, arguments.points)
            for name in ("whole", "jpeg"):
                way = Way(name, root)
                with way as crowd:
                    forget(root)
                    cold = alone(crowd, 0, cold=True)
                    core = alone(crowd, arguments.seconds)
                    many = [steps(crowd, n, arguments.seconds)[0] for n in arguments.processes]
                    size = tensor_bytes(collate([crowd[0]])) / 1000
                    shares = [
                        steps(crowd, arguments.processes[-1], arguments.seconds, ms / 1000)[1] for ms in arguments.steps
                    ]
                waits.append(f"| {side} | {name} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
                print(
                    f"| {side} | {name} | {core:.0f} | {cold:.0f} |",
                    *(f"{n:.0f} |" for n in many),
                    f"{size:.0f} |",
                    flush=True,
                )
    print("\n| width | pixels |", *(f"waiting, step of {ms:g} ms |" for ms in arguments.steps))
    print("|" + " --- |" * (2 + len(arguments.steps)), *waits, sep="\n")


if __name__ == "__main__":
    main()
