"""Where the time of a training step goes, on the CPU's clock or on the GPU's."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Stopwatch:
    """Seconds by part: each ``lap(part)`` books the time since the lap before.

    On a GPU the laps are events of its stream, which are read in ``seconds`` only: a lap does not wait for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.laps: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, part: str) -> None:
        if self.on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.laps.append((part, now))

    def seconds(self) -> dict[str, float]:
        """Sum of each part so far."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for (_, before), (part, now) in zip(self.laps, self.laps[1:]):
            totals[part] += before.elapsed_time(now) / 1000 if self.on_gpu else now - before
        return dict(totals)
