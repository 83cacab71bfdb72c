"""Checkpoint files of a training run.

``<epoch>_ckpt.tar``  a dict with ``epoch``, ``model_state_dict``, ``optimizer_state_dict`` (the released code's names), and
                      what a run needs to go on or to describe itself: ``step``, ``best``, ``arguments`` (of the model),
                      ``config`` (all options), ``scaler`` and ``average`` where there is one. Random states are
                      no part of it: they follow from seed and epoch.
``best_model.pth``    a bare state_dict; the model's name and arguments ride on its ``_metadata``, which ``torch.load``
                      keeps and ``load_state_dict`` ignores
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from utils.files import atomic_write, make_folder

DESCRIPTION = "gst"


def _save(content: Any, path: Path) -> None:
    """``torch.save``, the same bytes every time; its way to say that the disk is full becomes an ``OSError``."""
    with atomic_write(path) as partial, partial.open("wb") as file:  # given a path, it would write that into the file
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise OSError(" ".join(str(error).split())) from None


def save_weights(path: Path, state_dict: dict[str, Any], description: dict[str, Any]) -> None:
    """Write a bare state_dict that carries ``description`` (plain numbers and strings) along."""
    metadata = dict(getattr(state_dict, "_metadata", {}))
    state_dict = OrderedDict(state_dict)
    state_dict._metadata = {**metadata, DESCRIPTION: description}
    _save(state_dict, path)


def save_checkpoint(folder: Path, epoch: int, keep: int, **state: Any) -> Path:
    """Write ``<epoch>_ckpt.tar`` and remove all but the newest ``keep`` of that name, and those of later epochs.

    The latter are of a run that this one, started anew or from an earlier epoch, takes the place of.
    """
    path = folder / f"{epoch}_ckpt.tar"
    _save({"epoch": epoch, **state}, path)
    found = checkpoints(folder)
    for later in found[found.index(path) + 1 :]:
        later.unlink()
    prune_checkpoints(folder, keep)
    return path


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ``keep``."""
    for old in checkpoints(folder)[:-keep]:
        old.unlink()


def set_aside(folder: Path, epoch: int, step: int, batch: dict[str, Any], **state: Any) -> Path:
    """Write the batch that broke a run and, as a checkpoint to begin ``epoch`` with, the state before it; -> their folder."""
    folder = make_folder(folder / "trouble")
    contents = {f"epoch{epoch}_step{step}_batch.pt": batch, "last_good_ckpt.tar": {"epoch": epoch - 1, **state}}
    for name, content in contents.items():
        _save(content, folder / name)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [path for path in folder.glob("[!.]*_ckpt.tar") if path.name.partition("_")[0].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("_")[0]))


def find_start(resume: str, folder: Path, arguments: dict[str, Any], free: Sequence[str]) -> Path | None:
    """The checkpoint that a run goes on from: a file, the newest in ``folder`` ("auto"), or None for a new start ("none").

    With "auto", a folder that holds a run with other options is refused, but for the ``free`` ones, which may change from
    one start to the next: ``ValueError``.
    """
    if resume != "auto":
        return None if resume == "none" else Path(resume)
    found = checkpoints(folder)
    if not found:
        return None
    config = folder / "config.yml"
    try:
        before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    except (ValueError, RecursionError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict) or any(isinstance(value, (dict, list)) for value in before.values()):
        raise ValueError(f"{config}: not the options of a run; delete this file, or choose another --save-dir")
    for key, value in before.items():
        if key in arguments and key not in free and value != arguments[key]:
            option = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"{folder}: holds a run with {option} {value}, not {arguments[key]}; "
                "choose another --save-dir, or start it anew with --resume none"
            )
    return found[-1]


def describe(content: dict[str, Any]) -> dict[str, Any]:
    """What a loaded checkpoint says of itself: ``model_name``, ``topk``, ``usenum`` and whatever the run wrote down.

    Files of the released code say nothing: the layers tell the name and ``usenum``, and they are right where a file says
    otherwise. Raises ``ValueError`` for a ``topk`` that is none.
    """
    state = content["model_state_dict"]
    metadata = content.get("arguments") or getattr(state, "_metadata", {}).get(DESCRIPTION) or {}
    embeddings = state.get("encoder.near_embeddings.weight")
    layers = {"model_name": "vgg"} if embeddings is None else {"model_name": "vgg_trans", "usenum": len(embeddings)}
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    topk = metadata.get("topk", 1)
    if not isinstance(topk, (int, float)) or not 0 < topk <= 1:
        raise ValueError(f"the checkpoint was made with topk {topk!r:.40}, which is not in (0, 1]; save it again")
    return {**metadata, **layers}
