"""``model_card.md`` beside a ``best_model.pth``: what the weights are, what they were trained on, how well they count.

It follows from the run's own files (``utils.training.run_folder``) and from the data set, and is written again whenever one of
them has changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from utils.files import atomic_write, data_name, file_hash, read_json, remove_stale_partials, split_hashes, write_json
from utils.training.run_folder import BEST, CARD, EVALUATIONS, RunFolder, shareable

LIBRARIES = ("torch", "torchvision", "numpy", "gsplat", "lightning-fabric", "opencv-python-headless")


def write_card(path: Path) -> Path | None:
    """Write the card of the run in ``path`` -> its path; None where no best model is there yet, or no run's files."""
    folder = RunFolder(path)
    if not folder.best_path.is_file() or not (options := folder.options()):
        return None
    sha256, best = file_hash(folder.best_path), folder.best() or {}
    val = split_hashes(str(options["data_dir"])).get("val", ("", "unknown"))
    val = val if best.get("val_hash", val[1]) == val[1] else ("", best["val_hash"])  # chosen on other images
    how = f"windows of {best.get('window', options['window'])} px"
    errors = (f"{best[key]:.2f}" if best else "unknown" for key in ("val_mae", "val_mse"))
    scores = [("val", *errors, val, how)]
    for entry in read_json(path / EVALUATIONS, []):
        if entry["weights_sha256"] == sha256:
            evaluated = entry["images"], entry["split_hash"]
            scores.append((entry["split"], f"{entry['mae']:.2f}", f"{entry['mse']:.2f}", evaluated, entry["options"]))
    with atomic_write(path / CARD) as partial:
        partial.write_text(_card(folder, options, best, sha256, scores), encoding="utf-8")
    return path / CARD


def note_evaluation(weights: Path, data_dir: Path, facts: dict[str, Any]) -> None:
    """Add scores of ``test.py`` (a ``summary.json``) to the card beside ``weights``, if there is one.

    Only the best model of a run has one. A later evaluation with the same options takes the place of an earlier one.
    """
    folder = weights.parent
    if weights.name != BEST or not (folder / CARD).is_file():
        return
    remove_stale_partials(folder)
    chosen, split = facts["configuration"], facts["configuration"]["split"]
    images, split_hash = split_hashes(str(data_dir)).get(split, (facts["scored"], "unknown"))
    how = [f"windows of {chosen['window']} px"]
    how += ["mirrored too"] if chosen["flip_average"] else []
    how += [chosen["precision"]] if chosen["precision"] != "32" else []
    how += [f"{facts['scored']} of {images} images scored"] if facts["scored"] != images else []
    same = {"split": split, "split_hash": split_hash, "options": ", ".join(how)}
    same["weights_sha256"] = facts["weights_sha256"]
    others = [old for old in read_json(folder / EVALUATIONS, []) if old | same != old]
    entry = same | {"images": images, "mae": facts["mae"]["value"], "mse": facts["mse"]["value"]}
    write_json(folder / EVALUATIONS, [*others, entry])
    write_card(folder)


def _card(folder: RunFolder, options: dict[str, Any], best: dict[str, Any], sha256: str, scores: list[tuple]) -> str:
    name, loss, epochs = options["model_name"], options["loss"], folder.metrics()
    dataset = _cell(data_name(options["dataset"], options["data_dir"]))
    planned, environment = folder.progress()["epochs"], read_json(folder.path / "environment.json", {})
    data = split_hashes(str(options["data_dir"]))
    hours = sum(epoch.get("seconds", 0) for epoch in epochs) / 3600
    packages = environment.get("packages", {})
    versions = [f"{library} {packages[library]}" for library in LIBRARIES if library in packages]
    on_cpu = options.get("device") == "cpu" or not environment.get("gpus")
    hardware = f"CPU, {os.cpu_count()} cores" if on_cpu else ", ".join(environment["gpus"])
    decay, steps = options["weight_decay"], options["batch_size"] * options["accumulate"]
    facts = {
        "network": f"`{name}`, topk {options['topk']}, usenum {options['usenum']}",
        "weights": f"`best_model.pth`, SHA-256 `{sha256}`, of epoch {best.get('epoch', 'unknown')}",
        "data": ", ".join([dataset, *(f"{data[split][0]} {split}" for split in data)]) + " images",
        "loss": f"`{loss}`",
        "recipe": f"Adam, learning rate {options['lr']:g} ({options['lr_schedule']}), weight decay {decay:g}, "
        f"batch {steps} x crops of {options['crop_size']}, seed {options['seed']}",
        "time": f"{hours:.2f} h for {len(epochs)} of {planned or options['epochs']} epochs, training alone",
        "hardware": f"{hardware}; {environment.get('platform', 'unknown')}",
        "versions": ", ".join([f"Python {environment.get('python', 'unknown')}", *versions]),
    }
    lines = [f"# {name}, trained on {dataset} with {loss}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "## Errors", "", "| split | images | MAE | RMSE | how | split hash |", "|---|---|---|---|---|---|"]
    for split, mae, mse, (images, split_hash), how in scores:
        lines.append(f"| {split} | {images} | {mae} | {mse} | {how} | `{split_hash[:16]}` |")
    if not any(split == "test" for split, *_ in scores):
        lines.append("| test | | not evaluated yet | | | |")
    lines += ["", 'RMSE is what crowd counting calls "MSE". The model was chosen by 2 RMSE + MAE on val.', ""]
    hashes = ", ".join(f"{split} `{split_hash[:16]}`" for split, (_, split_hash) in data.items())
    lines += [f"Split hashes (names of the images, bytes of their annotations): {hashes or 'unknown'}.", ""]
    lines += ["## Options", "", "```yaml"]
    lines += [yaml.safe_dump(shareable(options), allow_unicode=True).rstrip(), "```", "", "## Use", "", "```python"]
    lines += [
        "from hubconf import Counter  # in the project's folder",
        f'Counter("{BEST}").count("photo.jpg")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text of a user's as a table's cell."""
    return " ".join(str(text).replace("|", "\\|").split())
