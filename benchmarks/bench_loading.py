"""Crops a second that loading processes make, and how long a training step waits for them.

    python benchmarks/bench_loading.py --sides 1024 2048 6000 --processes 1 2 4 8

Images are drawn noise of a photograph's compressibility in a temporary folder; crops of 512 carry GST's kernel of about
``--points`` annotations. "A core" is by CPU time, the rest by the clock. "Waiting" is the share of the time in which a step of
one crop and so many milliseconds waits for its batch, with the last number of processes (a batch takes 1 to 2 ms to be handed
over; on a GPU the thread that pins memory does that).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import COUNT, benchmark_parser, make_data, parse_benchmark
from datasets.crowd import Crowd
from datasets.loading import CropLoader, EpochSampler
from losses import build_kernel
from utils.config import number

CROP = 512


def one_pass(crowd: Crowd, epoch: int) -> float:
    """Crops a second of a core's time, without a loader."""
    crowd.set_epoch(epoch)
    begin = time.process_time()
    for index in range(len(crowd)):
        crowd[index]
    return len(crowd) / (time.process_time() - begin)


def steps(crowd: Crowd, processes: int, seconds: float, step: float = 0.0) -> tuple[float, float]:
    """Crops a second through a loader, and the share of the time for which a step of ``step`` seconds waits for its batch."""
    sampler = EpochSampler(len(crowd), 1)
    loader = CropLoader(crowd, sampler, 1, processes, 2, torch.device("cpu"))
    crops, waited, begin = 0, 0.0, 0.0
    while True:
        start = time.perf_counter()
        for _ in loader:
            begin = begin or time.perf_counter()  # the first crop pays for the start of the processes
            waited, crops = waited + (time.perf_counter() - start if crops else 0.0), crops + 1
            if time.perf_counter() - begin > seconds and crops > 1:
                return (crops - 1) / (time.perf_counter() - begin), waited / (time.perf_counter() - begin)
            time.sleep(step)
            start = time.perf_counter()
        sampler.epoch += 1


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    add = parser.add_argument
    add("--sides", type=number(int, 1024), nargs="+", default=[1024, 2048, 6000], help="widths of images, pixels")
    add("--processes", type=COUNT, nargs="+", default=[1, 2, 4, 8], help="loading processes")
    add("--steps", type=number(float, 0), nargs="+", default=[5, 10, 20], help="lengths of a step, ms")
    add("--images", type=COUNT, default=12, help="images of each size (default: 12)")
    add("--points", type=COUNT, default=800, help="annotations in a crop (default: 800)")
    add("--seconds", type=number(float, 0), default=3, help="of each measurement (default: 3)")
    arguments = parse_benchmark(parser)
    torch.set_num_threads(1)
    columns = [f"{n} processes" for n in arguments.processes] + [
        f"waiting, step of {ms:g} ms" for ms in arguments.steps
    ]
    print(f"| width | crops/s: a core | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}")
    for side in arguments.sides:
        with tempfile.TemporaryDirectory() as folder:
            people = round(arguments.points * side * (side * 2 // 3) / CROP**2)
            root = make_data(Path(folder), arguments.images, side, people)
            crowd = Crowd(root, CROP, "train", kernel=build_kernel("gst"))
            crowd.read_once()
            core, end = [one_pass(crowd, 0)], time.perf_counter() + arguments.seconds
            while time.perf_counter() < end:
                core.append(one_pass(crowd, len(core)))
            many = [f"{steps(crowd, n, arguments.seconds)[0]:.0f}" for n in arguments.processes]
            many += [
                f"{steps(crowd, arguments.processes[-1], arguments.seconds, ms / 1000)[1]:.0%}"
                for ms in arguments.steps
            ]
            print(f"| {side} | {statistics.median(core):.0f} | {' | '.join(many)} |", flush=True)


if __name__ == "__main__":
    main()
