"""Checkpoint files of a training run.

``<epoch>_ckpt.tar``  a dict with ``epoch``, ``model_state_dict``, ``optimizer_state_dict`` (the released code's names), and
                      what a run needs to go on or to describe itself: ``best``, ``arguments``
``best_model.pth``    a bare state_dict; the model's name and arguments ride on its ``_metadata``, which ``torch.load``
                      keeps and ``load_state_dict`` ignores
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_write

DESCRIPTION = "gst"


def save_weights(path: Path, state_dict: dict[str, Any], description: dict[str, Any]) -> None:
    """Write a bare state_dict that carries ``description`` (plain numbers and strings) along."""
    metadata = dict(getattr(state_dict, "_metadata", {}))
    state_dict = OrderedDict(state_dict)
    state_dict._metadata = {**metadata, DESCRIPTION: description}
    with atomic_write(path) as partial:
        torch.save(state_dict, partial)


def save_checkpoint(folder: Path, epoch: int, keep: int, **state: Any) -> Path:
    """Write ``<epoch>_ckpt.tar`` and remove all but the newest ``keep`` of that name."""
    path = folder / f"{epoch}_ckpt.tar"
    with atomic_write(path) as partial:
        torch.save({"epoch": epoch, **state}, partial)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [path for path in folder.glob("[!.]*_ckpt.tar") if path.name.partition("_")[0].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("_")[0]))


def describe(content: dict[str, Any]) -> dict[str, Any]:
    """What a loaded checkpoint says of itself: ``model_name``, ``topk``, ``usenum`` and whatever the run wrote down.

    Files of the released code say nothing: the layers tell the name and ``usenum``.
    """
    state = content["model_state_dict"]
    said = content.get("arguments") or getattr(state, "_metadata", {}).get(DESCRIPTION) or {}
    embeddings = state.get("encoder.near_embeddings.weight")
    layers = {"model_name": "vgg"} if embeddings is None else {"model_name": "vgg_trans", "usenum": len(embeddings)}
    return {**layers, **said}
