"""What a training run leaves to look at: ``metrics.jsonl``, TensorBoard, and the versions it ran with."""

from __future__ import annotations

import json
import threading
from typing import Any

import cv2
import matplotlib
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from utils.device import environment
from utils.files import atomic_write, write_json
from utils.training.run_folder import RunFolder

_PICTURE_WIDTH = 640  # pixels of an image in TensorBoard


class RunLog:
    """The log of the run in ``folder`` from ``first_epoch`` on; what an earlier attempt wrote about these epochs goes.

    ``metrics.jsonl`` has one line an epoch; TensorBoard reads ``tensorboard/``; ``environment.json`` lists versions.
    """

    def __init__(self, folder: RunFolder, first_epoch: int) -> None:
        self.path = folder.path / "metrics.jsonl"
        if self.path.exists():
            lines = [json.dumps(line) + "\n" for line in folder.metrics() if line["epoch"] < first_epoch]
            with atomic_write(self.path) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
        write_json(folder.path / "environment.json", environment())
        threading.excepthook = _say_unless_disk
        self.board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_epoch)

    def add_epoch(self, metrics: dict[str, Any]) -> None:
        """Write down the figures of an epoch: a number each, or a dict of numbers."""
        epoch = metrics["epoch"]
        for key, value in metrics.items():
            if isinstance(value, dict):
                for part, number in value.items():
                    self.board.add_scalar(f"{key}/{part}", number, epoch)
            elif key != "epoch":
                self.board.add_scalar(f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}", value, epoch)
        self.board.flush()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def add_density(self, epoch: int, name: str, image: np.ndarray, density: np.ndarray) -> None:
        """A picture: image uint8 [H, W, 3] above its density [H, W], which is drawn relative to its maximum."""
        height, width = image.shape[:2]
        size = _PICTURE_WIDTH, max(1, round(height * _PICTURE_WIDTH / width))
        shown = cv2.resize(density / max(float(density.max()), 1e-12), size, interpolation=cv2.INTER_AREA)
        shown = (255 * matplotlib.colormaps["viridis"](shown)[..., :3]).astype(np.uint8)
        picture = np.vstack([cv2.resize(image, size, interpolation=cv2.INTER_AREA), shown])
        self.board.add_image(f"density/{name}", picture, epoch, dataformats="HWC")

    def close(self) -> None:
        self.board.close()


def _say_unless_disk(arguments: threading.ExceptHookArgs) -> None:
    """What TensorBoard's thread cannot write is raised again by the next call; a traceback would stand above that line."""
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)
