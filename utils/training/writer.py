"""The files of a run are written beside its training: from copies of its state, by a thread."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.training.run_folder import RunFolder


class Snapshot(NamedTuple):
    """A state as it was at one moment, on the host: whole once ``copied``, an event of the device, has happened."""

    state: Any
    copied: torch.cuda.Event | None

    def wait(self) -> Any:
        if self.copied:
            self.copied.synchronize()
        return self.state


def snapshot(state: Any) -> Snapshot:
    """Copy nested dicts, lists and tuples of tensors. The device copies in its own time: the caller does not wait for it.

    Equal strings are one in it: what is pickled tells them apart, and in a state that was loaded they are others.
    """
    on_gpu = False

    def copied(value: Any) -> Any:
        nonlocal on_gpu
        if isinstance(value, Tensor):
            on_gpu |= value.is_cuda
            return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value, non_blocking=True)
        if isinstance(value, dict):
            result = copy.copy(value)  # with what a state_dict says of itself
            result.clear()
            result.update({copied(key): copied(item) for key, item in value.items()})
            return result
        if isinstance(value, str):
            return sys.intern(value)
        return type(value)(map(copied, value)) if isinstance(value, (list, tuple)) else value

    with torch.no_grad():
        result = copied(state)
    event = torch.cuda.Event() if on_gpu else None
    if event:
        event.record()
    return Snapshot(result, event)


class Writer:
    """Writes best models and checkpoints to ``folder``, of which the newest ``keep`` checkpoints stay.

    A checkpoint is written when an epoch ends and ``minutes`` have passed since the last; what no file holds yet is written
    by ``close``, so that nothing but a kill loses it. Of best models that come faster than they can be written the newest
    is. ``after_best`` runs when one is on the disk. What fails in the thread is raised by the next call.
    """

    def __init__(self, folder: RunFolder, keep: int, minutes: float, after_best: Callable[[], Any]) -> None:
        self.folder, self._keep, self._seconds, self._after_best = folder, keep, 60 * minutes, after_best
        self._thread, self._lock = ThreadPoolExecutor(1), threading.Lock()
        self._jobs: list[Future] = []
        self._best: tuple[Snapshot, dict[str, Any], bool] | None = None
        self._held: tuple[int, Snapshot] | None = None  # the newest epoch that no checkpoint holds
        self._last = time.monotonic()

    def save_best(self, state_dict: dict[str, Tensor], description: dict[str, Any], *, keep_each: bool) -> None:
        """Write the best model so far (``RunFolder.save_best``) as soon as the thread is free."""
        if keep_each:
            self._finish()
        with self._lock:
            self._best = snapshot(state_dict), description, keep_each
        self._jobs.append(self._thread.submit(self._write_best))

    def save_checkpoint(self, epoch: int, state: dict[str, Any]) -> None:
        """Take over the state after ``epoch``, and write it if it is time."""
        self._held = epoch, snapshot(state)
        if time.monotonic() - self._last >= self._seconds:
            self._write_held()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self._thread.shutdown()

    def close(self) -> None:
        """Write what is not written yet, and wait until all is on the disk. May be called again after an error."""
        if self._held:
            self._write_held()
        self._finish()

    def _write_held(self) -> None:
        self._finish()  # one at a time: where the disk is slower than training, training waits
        (epoch, state), self._held, self._last = self._held, None, time.monotonic()
        self._jobs.append(self._thread.submit(self._write_checkpoint, epoch, state))

    def _finish(self) -> None:
        while self._jobs:
            self._jobs.pop(0).result()

    def _write_best(self) -> None:
        best = self._best
        if best:
            state, description, keep_each = best
            self.folder.save_best(state.wait(), description, keep_each=keep_each)
            with self._lock:
                self._best = None if self._best is best else self._best
            self._after_best()

    def _write_checkpoint(self, epoch: int, state: Snapshot) -> None:
        self._write_best()  # if that failed: a run that goes on from here would never write it again
        self.folder.save_checkpoint(epoch, self._keep, **state.wait())
