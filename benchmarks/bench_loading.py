"""Crops a second that loading processes make.

    python benchmarks/bench_loading.py

Images are drawn noise of a photograph's compressibility in a temporary folder; crops of 512 carry GST's kernel of about 800
annotations. "A core" is by CPU time and without a loader, the rest by the clock.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import make_data
from datasets.crowd import Crowd
from datasets.loading import CropLoader, EpochSampler
from losses import build_kernel
from utils.config import make_parser

CROP, POINTS, IMAGES = 512, 800, 12
WIDTHS = 1024, 2048, 6000  # of the images, pixels
PROCESSES = 1, 2, 4, 8
SECONDS = 3.0  # of a measurement


def of_a_core(crowd: Crowd) -> float:
    """Crops a second of a core's time, without a loader."""
    begin, crops = time.process_time(), 0
    while time.process_time() - begin < SECONDS:
        crowd.set_epoch(crops)
        crowd[crops % len(crowd)]
        crops += 1
    return crops / (time.process_time() - begin)


def of_a_loader(crowd: Crowd, processes: int) -> float:
    """Crops a second through a loader; the first pays for the start of the processes and does not count."""
    sampler = EpochSampler(len(crowd), 1)
    loader = CropLoader(crowd, sampler, 1, processes, 2, torch.device("cpu"))
    crops, begin = -1, 0.0
    while True:
        for _ in loader:
            crops, begin = crops + 1, begin or time.perf_counter()
            if crops and time.perf_counter() - begin > SECONDS:
                return crops / (time.perf_counter() - begin)
        sampler.epoch += 1


def main() -> None:
    """Print the table."""
    make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    columns = ["width", "crops/s: a core", *(f"{number} processes" for number in PROCESSES)]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            people = round(POINTS * width * (width * 2 // 3) / CROP**2)
            crowd = Crowd(make_data(Path(folder), IMAGES, width, people), CROP, "train", kernel=build_kernel("gst"))
            crowd.read_once()
            rates = [of_a_core(crowd), *(of_a_loader(crowd, number) for number in PROCESSES)]
        print(f"| {width} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
