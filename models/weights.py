"""Checkpoints of whole networks, read without executing anything that they contain."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.training.run_folder import BEST, DESCRIPTION

_COMPILED = "_orig_mod."
_PREFIXES = ("module.", "model.", _COMPILED)


def weights_file(path: str | os.PathLike) -> Path:
    """The file of a checkpoint: the path itself, or the best model in the folder of a run."""
    path = Path(path)
    return path / BEST if path.is_dir() else path


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Contents of a checkpoint (.tar), or of a bare state_dict (.pth) as {"model_state_dict": ...}, on the CPU.

    So are those of a .safetensors file of `models.export`, with the description that it carries as "arguments". The
    prefixes that wrappers put before every name are taken off (``strip_prefixes``), with a line on stderr. A dict of tensors
    as ``state_dict`` or ``model`` stands for ``model_state_dict``. Of a run with averaged
    weights these are what was validated and what the checkpoint means: they are its ``model_state_dict``, and those that
    training goes on with its ``trained_state_dict``. Only tensors and plain containers are unpickled. Raises OSError (missing
    or unreadable file) or ValueError (damaged, refused or not a state_dict).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file, check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on file formats; whatever matters ends in an exception
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    _check_claim(path, sum(entry.file_size for entry in archive.infolist()))
            if path.suffix == ".safetensors":
                content = _read_safetensors(path)
            else:
                content = torch.load(path, weights_only=True, map_location="cpu")
            for tensor in _tensors(content):
                _check_claim(path, tensor.untyped_storage().nbytes())
    except Exception as error:  # a damaged file makes the unpickler fail with anything, KeyError included
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # this one: a seek beyond the end of a cut file
            raise OSError(f"{path}: cannot be read ({error.strerror or error}), check its permissions") from None
        if str(error).startswith(f"{path}: "):
            raise
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: contains more than tensors and is refused, since loading it could run foreign "
                "code: save model.state_dict() alone"
            ) from None
        raise ValueError(
            f"{path}: not a readable PyTorch weights file (damaged, incomplete or of another kind), "
            "fetch or save it again"
        ) from None
    keys = ("model_state_dict", "state_dict", "model")  # ours, Lightning's, and many others'
    key = next((key for key in keys if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    checkpoint = {name: value for name, value in content.items() if name != key} if key else {}
    state = content[key] if key else content
    if isinstance(checkpoint.get("average"), dict):
        averaged = {name: value for name, value in checkpoint["average"].items() if name != "n_averaged"}
        checkpoint["trained_state_dict"], state = state, {str(n).removeprefix("module."): averaged[n] for n in averaged}
    for named in (state, checkpoint.get("trained_state_dict", state)):
        tensors = isinstance(named, dict) and named and all(isinstance(value, torch.Tensor) for value in named.values())
        if not tensors or not all(isinstance(name, str) for name in named):
            raise ValueError(
                f"{path}: neither a state_dict nor a checkpoint with model_state_dict, save model.state_dict()"
            )
    state, removed = strip_prefixes(state)
    if removed:
        print(f"{path}: {removed} before the names of its layers is taken off", file=sys.stderr)
    return {**checkpoint, "model_state_dict": state}


def strip_prefixes(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """``state`` without what wrappers add to names, and what that was, in their order.

    "module." of DataParallel and "model." of Lightning stand before all names, "_orig_mod." of torch.compile before all
    or in the names of the modules that were compiled.
    """
    names, removed = list(state), []
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
        removed.append(prefix)
    inside = [name.replace(f".{_COMPILED}", ".") for name in names]
    inside = [name.removeprefix(_COMPILED) for name in inside]
    if inside != names:
        removed.append(_COMPILED)
    if not removed or len(set(inside)) < len(state):
        return state, ""
    stripped = OrderedDict(zip(inside, state.values(), strict=True))
    if hasattr(state, "_metadata"):  # where a checkpoint describes itself
        stripped._metadata = state._metadata
    return stripped, ", ".join(removed)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError(f"{path}: needs the package safetensors: pip install -r requirements-export.txt") from None
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        return {"model_state_dict": state, "arguments": json.loads((file.metadata() or {}).get(DESCRIPTION, "{}"))}


def _check_claim(path: Path, claimed: int) -> None:
    """Torch stores without compression: what unpacks to more than the file was made to fill the memory."""
    if claimed > path.stat().st_size:
        raise ValueError(
            f"{path}: claims {claimed:,} bytes, more than the file holds, and is refused: fetch or save it again"
        )


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested containers, each container once, however often and deep it is referred to."""
    seen, waiting = set(), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name from a file that `read_checkpoint` reads."""
    return read_checkpoint(path)["model_state_dict"]


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a checkpoint (see `read_state_dict`) into a model of `build_model`, strictly: all names and all shapes.

    Raises OSError or ValueError, each with one line that names the file, what differs and the likely cause; the model
    is then unchanged.
    """
    load_state(model, read_state_dict(path), path)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """The same for the weights that `read_checkpoint` found in the file ``path``."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        differences = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ValueError(
            f"{path}: not weights of {model.name}: {' and '.join(differences)}; {_likely_cause(model, state)}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            other_usenum = name == "encoder.near_embeddings.weight" and tensor.shape[1:] == expected[name].shape[1:]
            remedy = (
                f"build the model with usenum {tensor.shape[0]}" if other_usenum else "use a checkpoint of this network"
            )
            raise ValueError(
                f"{path}: {name} has shape {list(tensor.shape)}, {model.name} needs "
                f"{list(expected[name].shape)}: {remedy}"
            )
    model.load_state_dict(state)


def _likely_cause(model: nn.Module, state: dict[str, torch.Tensor]) -> str:
    """What the names say about where the weights come from, and what to do."""
    heads = {"vgg_trans": "reg_layer_0.", "vgg": "reg_layer."}
    networks = [name for name, prefix in heads.items() if any(key.startswith(prefix) for key in state)]
    if len(networks) == 1 and networks[0] != model.name:
        return f"they fit --model-name {networks[0]}"
    if len(networks) == 1:
        return f"an incomplete or modified checkpoint of {model.name}"
    if any(key.startswith(("features.", "classifier.", "0.")) for key in state):
        return "for the features alone use --backbone-weights"
    return "the file belongs to another network"
