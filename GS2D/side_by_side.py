"""Passing any number of images through an atlas: who comes in next, who is done, and what happens when memory runs out."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from GS2D.atlas import Atlas, Entry, fits_together, room, whole_tiles


class Fit(Protocol):
    """A fit under way."""

    entry: Entry
    done: int  # iterations

    @property
    def left(self) -> int:
        """Iterations until it wants to see its loss; 0 when it is over."""

    def moved(self, done: int, losses: tuple[float, float]) -> None:
        """``done`` iterations are done in all, the last of which began with these losses (render, shape)."""

    def result(self) -> Any:
        """What came out."""


class Task(NamedTuple):
    """An image that is taken when there is room: (height, width), and what reads it."""

    size: tuple[int, int]
    load: Callable[[], Fit]


class _Held(NamedTuple):
    index: int
    fit: Fit


def fit_all(tasks: Sequence[Task], atlas: Atlas, learning_rate: float, workers: int) -> Iterator[tuple[int, Any]]:
    """Fit all images and yield (index, result) as each fit ends: large images first, the next as soon as one is done.

    ``workers`` threads read images ahead. An image that cannot be read or is too large for the device gives its exception
    (``OSError``, ``ValueError``, ``MemoryError``) as its result. Where the device's memory runs out the atlas is halved; the
    images that leave it keep what they have and come in again later.
    """
    pixels = room(atlas.device)
    queue = sorted(range(len(tasks)), key=lambda index: whole_tiles(tasks[index].size))  # the next one last
    running: list[_Held] = []
    waiting: list[_Held] = []  # taken out of the atlas when it was halved
    with _Reader(tasks, queue, workers) as reader:
        while queue or running or waiting:
            held = [run.fit.entry.mask.shape for run in running]
            while waiting and fits_together([*held, waiting[-1].fit.entry.mask.shape], pixels):
                running.append(waiting.pop())
                held.append(running[-1].fit.entry.mask.shape)
            while queue and not waiting and fits_together([*held, tasks[queue[-1]].size], pixels):
                index = queue.pop()
                try:
                    fit = reader.get(index)
                except (OSError, ValueError, MemoryError) as error:
                    yield index, error
                    continue
                if fit.left == 0:
                    yield index, fit.result()
                    continue
                running.append(_Held(index, fit))
                held.append(fit.entry.mask.shape)
            if not running:
                continue
            try:
                atlas.hold([run.fit.entry for run in running])
                steps = min(run.fit.left for run in running)
                losses = atlas.advance(steps, learning_rate)
            except RuntimeError as error:  # torch.OutOfMemoryError is one, and CUDA itself has another
                if "out of memory" not in str(error):
                    raise
                losses = None  # and out of the handler, whose traceback holds on to what was allocated
            if losses is None:
                atlas.hold([])
                for run in running:  # some steps may be done
                    run.fit.done = int(run.fit.entry.step)
                if len(running) == 1:
                    (run,) = running
                    size = "{1} x {0}".format(*run.fit.entry.mask.shape)
                    yield (
                        run.index,
                        MemoryError(f"{size} pixels: too large for {atlas.device}'s memory; use --backend native"),
                    )
                    running = []
                else:
                    half = (len(running) + 1) // 2
                    area = half * max(math.prod(whole_tiles(run.fit.entry.mask.shape)) for run in running)
                    pixels = min(pixels, area)
                    running, waiting = running[:half], running[half:] + waiting
                torch.cuda.empty_cache()
                continue
            for run, loss in zip(running, losses):
                run.fit.moved(run.fit.done + steps, loss)
            over = [run for run in running if run.fit.left == 0]
            running = [run for run in running if run.fit.left > 0]
            for run in over:
                yield run.index, run.fit.result()


class _Reader:
    """Reads the images of a queue ahead, so that the atlas does not wait for them."""

    AHEAD = 2**26  # pixels

    def __init__(self, tasks: Sequence[Task], queue: list[int], workers: int) -> None:
        self.tasks, self.queue = tasks, queue
        self.pool = concurrent.futures.ThreadPoolExecutor(workers)
        self.futures: dict[int, concurrent.futures.Future[Fit]] = {}

    def get(self, index: int) -> Fit:
        ahead = 0
        for other in [index, *reversed(self.queue)]:
            ahead += math.prod(self.tasks[other].size)
            if other != index and ahead > self.AHEAD:
                break
            if other not in self.futures:
                self.futures[other] = self.pool.submit(self.tasks[other].load)
        return self.futures.pop(index).result()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
