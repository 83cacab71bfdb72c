"""What a training run leaves in its folder: best model, checkpoints, ``metrics.jsonl``, TensorBoard, the versions it ran with."""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.device import environment
from utils.files import atomic_write, split_hashes, write_json
from utils.training.run_folder import RunFolder

Best = tuple[dict[str, Tensor], dict[str, Any]] | None  # weights, and what they say of themselves
Checkpoint = tuple[int, dict[str, Any]] | None  # epoch and state


class Record:
    """What the first process of a run writes down, epoch by epoch.

    A thread writes best models and checkpoints, from copies, while the next epoch is trained, and those of one epoch at a
    time: where the disk is slower than training, training waits. A checkpoint is due ``--checkpoint-minutes`` after the last
    one; the newest epoch that no file holds is written at the end, however that comes. What fails in the thread is raised by
    the next call, and nothing is written then: no checkpoint is ahead of a best model that could not be written.

    ``description``: what the best model says of itself. ``write_card`` is called with the folder after each best model.
    """

    def __init__(
        self,
        folder: RunFolder,
        first_epoch: int,
        arguments: argparse.Namespace,
        description: dict[str, Any],
        write_card: Callable[[Path], Any],
    ) -> None:
        val_hash = split_hashes(str(arguments.data_dir))["val"][1]
        self.folder, self.best = folder, folder.best_score(val_hash, arguments.window)
        self._metrics = folder.path / "metrics.jsonl"
        if self._metrics.exists():  # what an earlier attempt wrote about these epochs goes
            lines = [json.dumps(line) + "\n" for line in folder.metrics() if line["epoch"] < first_epoch]
            with atomic_write(self._metrics) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
        write_json(folder.path / "environment.json", environment())
        threading.excepthook = _say_unless_disk
        self.board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_epoch)
        self._description = {**description, "val_hash": val_hash, "window": arguments.window}
        self._write_card, self._arguments = write_card, arguments
        self._thread, self._job = ThreadPoolExecutor(1), Future()
        self._job.set_result(None)
        self._held: tuple[Best, Checkpoint] = None, None  # of the newest epoch, what the thread has not been given
        self._last = time.monotonic()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add_epoch(self, metrics: dict[str, Any], evaluated: nn.Module, state: dict[str, Any]) -> None:
        """Write down an epoch: the network ``evaluated`` where it is the best so far, its figures, and ``state`` for going on."""
        best = None
        if "val_mae" in metrics:
            score = 2 * metrics["val_mse"] + metrics["val_mae"]
            if score < self.best:
                errors = {key: metrics[key] for key in ("epoch", "val_mae", "val_mse")}
                best, self.best = (host_copy(evaluated.state_dict()), self._description | errors), score
            tqdm.write("epoch {epoch}: loss {loss:.3f}, val MAE {val_mae:.3f}, MSE {val_mse:.3f}".format(**metrics))
        self._log(metrics)
        checkpoint = metrics["epoch"], host_copy(state)
        self._job.result()
        self._held = best, checkpoint
        is_due = time.monotonic() - self._last >= 60 * self._arguments.checkpoint_minutes
        if best or is_due:
            self._job = self._thread.submit(self._write, best, checkpoint if is_due else None)
            self._held = None, None if is_due else checkpoint
        if is_due:
            self._last = time.monotonic()

    def finish(self) -> None:
        """Wait until all is on the disk, and say which model is the best."""
        self._close()
        self._write_card(self.folder.path)
        self.board.close()
        has_best = math.isfinite(self.best) and self.folder.best_path.exists()
        best = f"best 2 MSE + MAE on val: {self.best:.3f}; {self.folder.best_path}"
        print(best if has_best else "no validation gave a finite error")

    def _close(self) -> None:
        self._thread.shutdown()
        self._job.result()
        self._write(*self._held)
        self._held = None, None

    def _write(self, best: Best, checkpoint: Checkpoint) -> None:
        if best:
            self.folder.save_best(*best, keep_each=self._arguments.save_all)
            self._write_card(self.folder.path)
        if checkpoint:
            epoch, state = checkpoint
            self.folder.save_checkpoint(epoch, self._arguments.max_model_num, **state)

    def _log(self, metrics: dict[str, Any]) -> None:
        """Write down the figures of an epoch, a number each or a dict of numbers: a line, and for TensorBoard."""
        epoch = metrics["epoch"]
        for key, value in metrics.items():
            if isinstance(value, dict):
                for part, number in value.items():
                    self.board.add_scalar(f"{key}/{part}", number, epoch)
            elif key != "epoch":
                self.board.add_scalar(f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}", value, epoch)
        self.board.flush()
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")


def _say_unless_disk(arguments: threading.ExceptHookArgs) -> None:
    """What TensorBoard's thread cannot write is raised again by the next call; a traceback would stand above that line."""
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def host_copy(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples of tensors in the host's memory.

    Equal strings are one in it: what is pickled tells them apart, and in a state that was loaded they are others.
    """
    if isinstance(state, Tensor):
        return torch.empty_like(state, device="cpu", pin_memory=state.is_cuda).copy_(state.detach())
    if isinstance(state, dict):
        return {host_copy(key): host_copy(value) for key, value in state.items()}
    if isinstance(state, str):
        return sys.intern(state)
    return type(state)(map(host_copy, state)) if isinstance(state, (list, tuple)) else state
