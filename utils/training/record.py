"""What a training run leaves in its folder: best model, checkpoints, ``metrics.jsonl``, TensorBoard, the versions it ran with."""

from __future__ import annotations

import argparse
import functools
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.device import environment
from utils.evaluation import density_map, predict
from utils.files import atomic_write, split_hashes, write_json
from utils.pixels import normalise
from utils.training.run_folder import RunFolder
from utils.training.writer import Writer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PICTURE_WIDTH = 640  # pixels of an image in TensorBoard


class Record:
    """What the first process of a run writes down, epoch by epoch.

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
        self._write_card, self._keep_each = functools.partial(write_card, folder.path), arguments.save_all
        self._writer = Writer(folder, arguments.max_model_num, arguments.checkpoint_minutes, self._write_card)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.__exit__()

    def add_epoch(self, metrics: dict[str, Any], evaluated: nn.Module, state: dict[str, Any]) -> None:
        """Write down an epoch: the network ``evaluated`` where it is the best so far, its figures, and ``state`` for going on."""
        if "val_mae" in metrics:
            score = 2 * metrics["val_mse"] + metrics["val_mae"]
            if score < self.best:
                errors = {key: metrics[key] for key in ("epoch", "val_mae", "val_mse")}
                self._writer.save_best(evaluated.state_dict(), self._description | errors, keep_each=self._keep_each)
                self.best = score
            tqdm.write("epoch {epoch}: loss {loss:.3f}, val MAE {val_mae:.3f}, MSE {val_mse:.3f}".format(**metrics))
        self._log(metrics)
        self._writer.save_checkpoint(metrics["epoch"], state)

    @torch.no_grad()
    def add_densities(self, fabric: Fabric, evaluated: nn.Module, val: Sequence[Any], epoch: int) -> None:
        """Show the first, the middle and the last validation image, each above its density relative to its maximum."""
        evaluated.eval()
        for index in sorted({0, len(val) // 2, len(val) - 1}):
            sample = val[index]
            with fabric.autocast():
                parts = predict(evaluated, normalise(sample.image.to(fabric.device)), self._description["window"])
            image, density = sample.image.permute(1, 2, 0).numpy(), density_map(parts).numpy()  # [H, W, 3], [H, W]
            size = _PICTURE_WIDTH, max(1, round(image.shape[0] * _PICTURE_WIDTH / image.shape[1]))
            shown = cv2.resize(density / max(float(density.max()), 1e-12), size, interpolation=cv2.INTER_AREA)
            shown = (255 * matplotlib.colormaps["viridis"](shown)[..., :3]).astype(np.uint8)
            picture = np.vstack([cv2.resize(image, size, interpolation=cv2.INTER_AREA), shown])
            self.board.add_image(f"density/{sample.name}", picture, epoch, dataformats="HWC")
        evaluated.train()

    def finish(self) -> None:
        """Wait until all is on the disk, and say which model is the best."""
        self._writer.close()
        self._write_card()
        self.board.close()
        has_best = math.isfinite(self.best) and self.folder.best_path.exists()
        best = f"best 2 MSE + MAE on val: {self.best:.3f}; {self.folder.best_path}"
        print(best if has_best else "no validation gave a finite error")

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
