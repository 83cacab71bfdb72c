"""``model_card.md`` beside a ``best_model.pth``: what the weights are, what they were trained on, how well they count.

It follows from the run's own files (config.yml, metrics.jsonl, environment.json, evaluations.json) and from the data set, and is
written again whenever one of them has changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from utils.evaluation.results import file_hash
from utils.files import atomic_write, list_images, points_path

CARD, EVALUATIONS = "model_card.md", "evaluations.json"
SPLITS = ("train", "val", "test")
LIBRARIES = ("torch", "torchvision", "numpy", "gsplat", "lightning-fabric", "opencv-python-headless")
# Where a run lies on its machine is nobody else's business, and changes nothing.
PLACES = ("data_dir", "save_dir", "backbone_weights", "resume", "device", "num_workers", "num_nodes", "data_licence")


def write_card(folder: Path) -> Path | None:
    """Write the card of the run in ``folder`` -> its path; None where no best model is there yet, or no run's files."""
    weights, config = folder / "best_model.pth", folder / "config.yml"
    if not weights.is_file() or not config.is_file():
        return None
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    epochs = _lines(folder / "metrics.jsonl")
    validated = [e for e in epochs if math.isfinite(e.get("val_mae", math.nan))]
    best = min(validated, key=lambda e: 2 * e["val_mse"] + e["val_mae"], default={})
    environment = _read(folder / "environment.json") or {}
    sha256, data = file_hash(weights), split_hashes(str(options["data_dir"]))
    scores = [("val", best.get("val_mae"), best.get("val_mse"), data.get("val"), f"windows of {options['window']} px")]
    for entry in _read(folder / EVALUATIONS) or []:
        if entry["weights_sha256"] == sha256:
            found = entry["images"], entry["split_hash"]
            scores.append((entry["split"], entry["mae"], entry["mse"], found, entry["options"]))
    with atomic_write(folder / CARD) as partial:
        partial.write_text(_card(options, epochs, best, environment, sha256, data, scores), encoding="utf-8")
    return folder / CARD


def note_evaluation(weights: Path, data_dir: Path, facts: dict[str, Any]) -> Path | None:
    """Add scores of ``test.py`` (a ``summary.json``) to the card beside ``weights`` -> the card; None where there is none.

    Only the best model of a run has one. A later evaluation with the same options takes the place of an earlier one.
    """
    folder = weights.parent
    if weights.name != "best_model.pth" or not (folder / CARD).is_file():
        return None
    chosen, split = facts["configuration"], facts["configuration"]["split"]
    images, split_hash = split_hashes(str(data_dir)).get(split, (facts["scored"], "unknown"))
    how = [f"windows of {chosen['window']} px"]
    how += [f"overlap {chosen['overlap']} px"] if chosen["overlap"] else []
    how += ["mirrored too"] if chosen["flip_average"] else []
    how += [chosen["precision"]] if chosen["precision"] != "32" else []
    how += [f"{facts['scored']} of {images} images scored"] if facts["scored"] != images else []
    entry = {"split": split, "split_hash": split_hash, "images": images, "options": ", ".join(how)}
    same = ("split", "split_hash", "options", "weights_sha256")
    entry |= {"mae": facts["mae"]["value"], "mse": facts["mse"]["value"], "weights_sha256": facts["weights_sha256"]}
    others = [old for old in _read(folder / EVALUATIONS) or [] if any(old[key] != entry[key] for key in same)]
    with atomic_write(folder / EVALUATIONS) as partial:
        partial.write_text(json.dumps([*others, entry], indent=1) + "\n", encoding="utf-8")
    return write_card(folder)


@functools.cache
def split_hashes(root: str) -> dict[str, tuple[int, str]]:
    """Split -> (images, hash): SHA-256 over the names of the images and the bytes of their annotations, in order of name.

    Two runs with the same hash had the same images, divided in the same way, with the same points at the same size.
    """
    found = {}
    for split in SPLITS:
        try:
            images = list_images(Path(root) / split)
        except (OSError, ValueError):
            continue
        digest = hashlib.sha256()
        for image in images:
            points = points_path(image)
            content = hashlib.sha256(points.read_bytes()).hexdigest() if points.is_file() else "-"
            digest.update(f"{image.stem} {content}\n".encode())
        found[split] = len(images), digest.hexdigest()
    return found


def _card(
    options: dict[str, Any],
    epochs: list[dict[str, Any]],
    best: dict[str, Any],
    environment: dict[str, Any],
    sha256: str,
    data: dict[str, tuple[int, str]],
    scores: list[tuple],
) -> str:
    name, loss = options["model_name"], options["loss"]
    hours = sum(epoch.get("seconds", 0) for epoch in epochs) / 3600
    packages = environment.get("packages", {})
    versions = [f"{library} {packages[library]}" for library in LIBRARIES if library in packages]
    on_cpu = options.get("device") == "cpu" or not environment.get("gpus")
    hardware = f"CPU, {os.cpu_count()} cores" if on_cpu else ", ".join(environment["gpus"])
    decay, steps = options["weight_decay"], options["batch_size"] * options["accumulate"]
    facts = {
        "network": f"`{name}`, topk {options['topk']}, usenum {options['usenum']}",
        "weights": f"`best_model.pth`, SHA-256 `{sha256}`, of epoch {best.get('epoch', 'unknown')}",
        "data": ", ".join([options["dataset"], *(f"{data[split][0]} {split}" for split in data)]) + " images",
        "licence of the data": _cell(options.get("data_licence") or "not stated (`train_gs.py --data-licence`)"),
        "loss": f"`{loss}`",
        "recipe": f"Adam, learning rate {options['lr']:g} ({options['lr_schedule']}), weight decay {decay:g}, "
        f"batch {steps} x crops of {options['crop_size']}, seed {options['seed']}",
        "time": f"{hours:.2f} h for {len(epochs)} of {options['epochs']} epochs, training alone",
        "hardware": f"{hardware}; {environment.get('platform', 'unknown')}",
        "versions": ", ".join([f"Python {environment.get('python', 'unknown')}", *versions]),
    }
    lines = [f"# {name}, trained on {options['dataset']} with {loss}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "## Errors", "", "| split | images | MAE | RMSE | how | split hash |", "|---|---|---|---|---|---|"]
    for split, mae, mse, found, how in scores:
        images, split_hash = found or ("", "unknown")
        lines.append(f"| {split} | {images} | {_number(mae)} | {_number(mse)} | {how} | `{split_hash[:16]}` |")
    if not any(split == "test" for split, *_ in scores):
        lines.append("| test | | not evaluated yet | | | |")
    lines += ["", 'RMSE is what crowd counting calls "MSE". The model was chosen by 2 RMSE + MAE on val.', ""]
    hashes = ", ".join(f"{split} `{split_hash[:16]}`" for split, (_, split_hash) in data.items())
    lines += [f"Split hashes (names of the images, bytes of their annotations): {hashes or 'unknown'}.", ""]
    lines += ["## Options", "", "```yaml"]
    shown = {key: value for key, value in options.items() if key not in PLACES}
    lines += [yaml.safe_dump(shown, allow_unicode=True).rstrip(), "```", "", "## Use", "", "```python"]
    entry = {"vgg": "gst_vgg19", "vgg_trans": "gst_vgg19_trans"}.get(name)
    load = f'torch.hub.load(GST, "{entry}", source="local", weights="best_model.pth")' if entry else "Counter(...)"
    lines += [f"counter = {load}  # GST: the project's folder", 'counter.count("photo.jpg")', "```", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _cell(text: str) -> str:
    """Text of a user's as a table's cell."""
    return " ".join(str(text).replace("|", "\\|").split())


def _read(path: Path) -> Any:
    """The JSON in a file of a run; None where it is missing or broken, since a card is no reason to fail."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
