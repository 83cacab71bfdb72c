"""The folder of a training run and its one owner: what it holds, what was planned, what is done, what is best, how it goes on.

``config.yml``          the options, as ``--config`` takes them; how one start was resumed is none of them
``run.json``            ``epochs`` that were planned, ``done`` of them, ``crops`` of one step on all processes together, and
                        ``start``: the file of weights, if any, that the run began with
``metrics.jsonl``       a line an epoch
``<epoch>_ckpt.tar``    a dict with ``epoch``, ``model_state_dict``, ``optimizer_state_dict`` (the released code's names), and what
                        a run needs to go on or to describe itself: ``step``, ``epochs``, ``seconds``, ``arguments`` (of the
                        model), ``config`` (all options), ``scaler`` and ``average`` where there is one. Random states are no
                        part of it: they follow from seed and epoch.
``best_model.pth``      a bare state_dict; the model's name and arguments, the epoch and its errors on the validation images
                        ride on its ``_metadata``, which ``torch.load`` keeps and ``load_state_dict`` ignores
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from utils.config import option_values
from utils.files import atomic_write, data_name, read_json, read_json_lines, write_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from utils.training.steps import WeightAverage

BEST, CARD, EVALUATIONS = "best_model.pth", "model_card.md", "evaluations.json"
DESCRIPTION = "gst"
# Options of one start, which no file of the run remembers.
START_OPTIONS = ("overwrite", "resume")
# Options that change no result: where a run lies on its machine and how it works there.
MACHINE_OPTIONS = ("checkpoint_minutes", "data_dir", "device", "graphs", "max_model_num", "num_workers", "prefetch")
MACHINE_OPTIONS += ("save_all", "save_dir")
# Options that do not change what a step computes: a run may go on with other values. How a step's crops are divided is not
# compared either, but their number is.
NEUTRAL_OPTIONS = (*MACHINE_OPTIONS, "accumulate", "backbone_weights", "batch_size", "epochs", "minutes", "num_nodes")
NEUTRAL_OPTIONS += ("skip_bad_samples", "val_every", "val_start", "window")
# What a run may have left in its folder; results of test.py say of which weights they are, and stay.
_OWN = ("*_ckpt.tar", "best_model*.pth", CARD, EVALUATIONS, "metrics.jsonl", "environment.json", "tensorboard")
_OWN += ("config.yml",)


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that make a run what it is, as plain values."""
    return {key: value for key, value in option_values(arguments).items() if key not in START_OPTIONS}


def shareable(options: dict[str, Any]) -> dict[str, Any]:
    """Options for the eyes of others: without what is of one machine, and of a file of weights the name alone."""
    shown = {key: value for key, value in options.items() if key not in (*MACHINE_OPTIONS, *START_OPTIONS)}
    return {key: Path(value).name if key == "backbone_weights" else value for key, value in shown.items()}


class RunFolder:
    """What the folder of a run says, and the only one that writes its checkpoints, best model, options and progress."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_begun = False  # here what ``begin`` writes is of this run

    @property
    def best_path(self) -> Path:
        return self.path / BEST

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        found = [path for path in self.path.glob("[!.]*_ckpt.tar") if path.name.partition("_")[0].isdigit()]
        return sorted(found, key=_epoch_of)

    def options(self) -> dict[str, Any]:
        """The options in ``config.yml``; none where there is no such file. ``ValueError`` for another content."""
        path = self.path / "config.yml"
        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (ValueError, RecursionError, yaml.YAMLError):
            options = None
        if not isinstance(options, dict) or any(isinstance(value, (dict, list)) for value in options.values()):
            raise ValueError(f"{path}: not the options of a run; delete this file, or choose another --save-dir")
        return options

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, but for one that a kill cut off."""
        return [line for line in read_json_lines(self.path / "metrics.jsonl") if isinstance(line.get("epoch"), int)]

    def progress(self) -> dict[str, Any]:
        """``run.json``: ``epochs``, ``done``, ``crops`` and ``start``, each None where the run did not say.

        A checkpoint counts from the moment when it is whole; without one, as after tidying up, the run's own word does.
        """
        content = dict.fromkeys(("epochs", "done", "crops", "start")) | read_json(self.path / "run.json", {})
        newest = self.checkpoints()[-1:]
        return content | ({"done": _epoch_of(newest[0]) + 1} if newest else {})

    def best(self) -> dict[str, Any] | None:
        """What ``best_model.pth`` says of itself: ``epoch``, ``val_mae``, ``val_mse``, ``val_hash`` and ``window``.

        None where there is none, or one that nothing is known of.
        """
        try:
            state = torch.load(self.best_path, weights_only=True, map_location="cpu", mmap=True)
        except Exception:  # missing, damaged or of another kind: ``read_checkpoint`` says which where it matters
            return None
        found = getattr(state, "_metadata", {}).get(DESCRIPTION)
        return found if isinstance(found, dict) and "val_mae" in found else None

    def best_score(self, val_hash: str, window: int) -> float:
        """2 MSE + MAE of the best model, by which the next is chosen; infinity where it is of other images or windows."""
        best = self.best() or {}
        same = best.get("val_hash", val_hash) == val_hash and best.get("window", window) == window
        return 2 * best["val_mse"] + best["val_mae"] if best and same else math.inf

    def find_start(self, resume: str, overwrite: bool, options: dict[str, Any], crops: int) -> Path | None:
        """The file that a start goes on from, or None where it begins anew. Changes nothing.

        ``resume``: "auto" (the newest checkpoint here, if any), a file, or "none". A start anew in a folder that holds a run
        is refused without ``overwrite``, and so is going on with ``options`` that would change what a step computes or
        another number of ``crops`` in a step: ``ValueError``.
        """
        newest, progress = next(reversed(self.checkpoints()), None), self.progress()
        given = None if resume in ("auto", "none") else Path(resume)
        if given and not given.is_file():
            raise FileNotFoundError(f"{given}: no such weights file, check the path")
        before = Path(progress["start"]) if progress["start"] else None
        goes_on = not overwrite and (
            resume == "auto" or (given and given.resolve() in (path.resolve() for path in (newest, before) if path))
        )
        if newest and goes_on:
            self._check(options, crops)
            return newest
        # What an unfinished first epoch left does not count.
        if self._holds_run() and progress["done"] != 0 and not overwrite:
            what = f"a run of {progress['done']} epochs" if progress["done"] else "a run"
            remedy = ", or leave --resume out to go on with it" if newest else ""
            raise ValueError(f"{self.path}: holds {what}; choose another --save-dir, or --overwrite{remedy}")
        leftovers = {path.resolve() for path in self._leftovers()}
        for option, file in (("resume", given), ("backbone-weights", Path(options.get("backbone_weights", "none")))):
            if file and not leftovers.isdisjoint((file.resolve(), *file.resolve().parents)):
                raise ValueError(f"--{option} {file}: a start anew removes it; choose another --save-dir")
        return before if goes_on else given

    def _check(self, options: dict[str, Any], crops: int) -> None:
        remedy = "choose another --save-dir, or start it anew with --overwrite"
        for key, value in self.options().items():
            if key in options and key not in NEUTRAL_OPTIONS and value != options[key]:
                option = f"--{key.replace('_', '-')}"
                raise ValueError(f"{self.path}: holds a run with {option} {value}, not {options[key]}; {remedy}")
        before = self.progress()["crops"]
        if before not in (None, crops):
            what = f"{before} crops in a step (processes x --batch-size x --accumulate), not {crops}"
            raise ValueError(f"{self.path}: holds a run with {what}; {remedy}")

    def _holds_run(self) -> bool:
        return self.progress()["done"] is not None or self.best_path.exists()

    def _leftovers(self) -> list[Path]:
        """What a start anew removes, in that order: checkpoints first, the options last; nothing where no run has been."""
        return [path for pattern in _OWN for path in sorted(self.path.glob(pattern))] if self._holds_run() else []

    def begin(self, options: dict[str, Any], start: Path | None, epochs: int, crops: int) -> None:
        """Write down what is about to run. A start anew first removes all that a run before it left in the folder.

        Its progress is there until the new one's takes its place, so that a kill in between leaves a folder that is known to
        hold a run; the options come last, so that they never stand beside the progress of another run.
        """
        goes_on = start in self.checkpoints()
        self.plan = self.progress() | {"epochs": epochs, "crops": crops}
        if not goes_on:
            for path in self._leftovers():
                _remove(path)
            self.plan |= {"done": 0, "start": str(start) if start else None}
        self.note_progress(self.plan["done"], epochs)
        with atomic_write(self.path / "config.yml") as partial:
            partial.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")

    def note_progress(self, done: int, epochs: int) -> None:
        """Write down that so many of the planned epochs are done."""
        self.plan |= {"done": done, "epochs": epochs}
        write_json(self.path / "run.json", self.plan)

    def save_checkpoint(self, epoch: int, keep: int, **state: Any) -> None:
        """Write ``<epoch>_ckpt.tar`` of ``state``, note the progress, and remove all but the newest ``keep``."""
        _save({"epoch": epoch, **state}, self.path / f"{epoch}_ckpt.tar")
        self.note_progress(epoch + 1, state["epochs"])
        self.prune(keep)

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but the newest ``keep``."""
        for old in self.checkpoints()[:-keep]:
            old.unlink()

    def save_best(self, state_dict: dict[str, Any], description: dict[str, Any], *, keep_each: bool) -> None:
        """Write the best model so far; ``keep_each``: also as ``best_model_<epoch>.pth``."""
        if keep_each:  # first: what is not better than the best is not written again after a kill
            save_weights(self.path / f"best_model_{description['epoch']}.pth", state_dict, description)
        save_weights(self.best_path, state_dict, description)


def restore_training(
    path: Path,
    state: dict[str, Any],
    fabric: Fabric,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    settings: dict[str, Any],
) -> int:
    """Load all but the weights of a checkpoint that ``path`` held -> the epoch to begin with, 0 where it is bare weights.

    ``settings``: of this run's optimizer. ``ValueError`` where the state is of another network.
    """
    if average and state.get("average"):
        average.load_state_dict(state["average"])
    if "optimizer_state_dict" not in state:
        return 0
    try:
        saved = state["optimizer_state_dict"]
        # Rate, decay and form of the step are this run's: the file's would silently win.
        groups = [{**g, **settings, "lr": own["lr"]} for g, own in zip(saved["param_groups"], optimizer.param_groups)]
        optimizer.load_state_dict({**saved, "param_groups": groups})
        if state.get("scaler"):  # absent in files of other precisions
            fabric.strategy.precision.load_state_dict(state["scaler"])
        return int(state["epoch"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        reason = f"its training state does not fit this run ({error}); start from a .pth file"
        raise ValueError(f"{path}: {reason}") from None


def save_weights(path: Path, state_dict: dict[str, Any], description: dict[str, Any]) -> None:
    """Write a bare state_dict that carries ``description`` (plain numbers and strings) along."""
    metadata = dict(getattr(state_dict, "_metadata", {}))
    state_dict = OrderedDict(state_dict)
    state_dict._metadata = {**metadata, DESCRIPTION: description}
    _save(state_dict, path)


def description(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the files of a run say of its data and network."""
    named = {key: getattr(arguments, key) for key in ("model_name", "topk", "usenum", "crop_size")}
    return {"dataset": data_name(arguments.dataset, arguments.data_dir), **named}


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


def _save(content: Any, path: Path) -> None:
    """``torch.save``, the same bytes every time; its way to say that the disk is full becomes an ``OSError``."""
    with atomic_write(path) as partial, partial.open("wb") as file:  # given a path, it would write that into the file
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise OSError(" ".join(str(error).split())) from None


def _epoch_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("_")[0])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
