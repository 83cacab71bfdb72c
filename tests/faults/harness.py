"""Kills each stage at random moments, runs it again and compares with a run that nobody interrupted."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from commands import kill_group
from forked import Started
from raw_data import make_raw
from training_runs import make_data

from GS2D.gaussians import Gaussians2D, read_file
from GS2D.kernel import load_kernel
from models import read_checkpoint
from utils.files import gaussians_path, list_images, read_points
from utils.images import load_image

TIMES = ("seconds", "images_per_second", "time", "val_seconds")


class Stage(NamedTuple):
    """A command over a folder ``work`` that begins as a copy of ``inputs``."""

    inputs: Path
    script: str
    arguments: Callable[[Path], list[str]]


def run(script: str, arguments: list[str]) -> tuple[int, str]:
    """Run a script to its end -> exit code, its output."""
    return end(Started(script, arguments))


def end(run: Started) -> tuple[int, str]:
    """Wait for the end of a script -> exit code, its output."""
    output = "".join(run.communicate())
    return run.returncode, output


def kill(script: str, arguments: list[str], moment: float) -> bool:
    """Kill a script and all its workers ``moment`` seconds after its start -> whether it still ran."""
    run = Started(script, arguments)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):  # it has ended
        kill_group(run.pid)
    return end(run)[0] == -signal.SIGKILL


def make_stages(root: Path, images: int = 6, epochs: int = 4) -> dict[str, Stage]:
    """The stages by name, each with the inputs that the stages before it made."""
    stages = {}

    def add(name: str, inputs: Path, script: str, options: str) -> None:
        """Add a stage; ``{}`` stands in its options for the folder that it works in."""
        stages[name] = Stage(inputs, script, lambda work: [word.format(work) for word in options.split()])

    def after(name: str, copy: str) -> Path:
        """A copy of a stage's inputs with what it made of them."""
        inputs, script, arguments = stages[name]
        folder = Path(shutil.copytree(inputs, root / copy))
        code, output = run(script, arguments(folder))
        assert code == 0, output
        return folder

    make_raw(root / "preprocess" / "raw", train=images, test=2, size=(96, 128))
    paths = "--input-dataset-path {0}/raw --output-dataset-path {0}/data --min-size 64 --max-size 256"
    add("preprocess", root / "preprocess", "preprocess_dataset_ucf.py", f"{paths} --workers 1")
    add("preprocess, 2 workers", root / "preprocess", "preprocess_dataset_ucf.py", f"{paths} --workers 2")
    fit, data = "2dgs_counting_1gs_gsplat.py", "--root-path {}/data"
    add("splat", after("preprocess", "splat"), fit, f"{data} --num-epochs 1500 --workers 2")
    fitted = after("splat", "clean")
    for image in list_images(fitted / "data" / "train"):
        gaussians, _, attributes = read_file(gaussians_path(image))
        gaussians.scales[:, 0] = 2 * gaussians.scales[:, 1]
        gaussians.save(gaussians_path(image), attributes=attributes)
    add("clean", fitted, "GS2D/process_gaussians.py", data)
    add("kernels", after("clean", "kernels"), "GS2D/build_kernels.py", f"{data} --workers 2")

    make_data(root / "train" / "data")
    options = (
        "--data-dir {0}/data --save-dir {0}/run --device cpu --backbone-weights none --crop-size 64 --num-workers 0"
    )
    options += f" --val-start 1 --val-every 1 --lr 1e-3 --checkpoint-minutes 0 --epochs {epochs}"
    add("train", root / "train", "train_gs.py", options)
    trained = after("train", "test")
    add("train anew", trained, "train_gs.py", f"{options} --seed 1 --overwrite")
    from_file = Path(shutil.copytree(root / "train", root / "train from a file"))
    shutil.copy(trained / "run" / f"{epochs - 1}_ckpt.tar", from_file / "start.tar")
    resumed = f"{options} --epochs {2 * epochs} --resume {{0}}/start.tar"
    add("train from a file", from_file, "train_gs.py", resumed)
    evaluation = "--save-path {0}/run/best_model.pth --data-dir {0}/data --split val --device cpu --out {0}/out"
    add("test", trained, "test.py", evaluation)
    return stages


def kill_stage(stage: Stage, folder: Path, kills: int, seed: int) -> list[str]:
    """Kill a stage ``kills`` times, the moments spread evenly over the time that it was seen to take -> what went wrong.

    Nothing may be broken after a kill; the same command then ends well, leaves no temporary file, and has written what an
    uninterrupted run writes.
    """
    work = folder / "work"

    def begin() -> list[str]:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(stage.inputs, work)
        return stage.arguments(work)

    arguments = begin()
    before = time.perf_counter()
    code, output = run(stage.script, arguments)
    seconds = time.perf_counter() - before
    assert code == 0, output
    expected = contents(work)
    random, problems = np.random.default_rng(seed), []
    for k in range(kills):
        part, running = (k + random.random()) / kills, False
        while not running:
            arguments = begin()
            running = kill(stage.script, arguments, part * seconds)
            part *= 0.9  # it had ended before: this time it was faster
        found = broken(work)
        code, output = run(stage.script, arguments)
        if code:
            found.append(f"exit code {code}: {output[-500:]}")
        found += broken(work) + [f"{path} is left" for path in temporary(work)]
        problems += [f"kill {k}: {problem}" for problem in (*found, *differences(expected, contents(work)))]
    return problems


def contents(folder: Path) -> dict[str, Any]:
    """Every file below ``folder``: its bytes, or, of files that hold times, all else.

    TensorBoard's files are logs of runs.
    """
    return {
        str(path.relative_to(folder)): _without_times(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [f"{name} differs" for name in names if expected.get(name) != found.get(name)]


def temporary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def broken(folder: Path) -> list[str]:
    """A line for each file under a final name that its reader refuses."""
    problems = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            try:
                _load(path)
            except Exception as error:
                problems.append(f"{path} does not load: {error}")
    return problems


def _load(path: Path) -> None:
    readers = {".jpg": load_image, ".npy": read_points, ".pth": read_checkpoint, ".tar": read_checkpoint}
    readers |= {".yml": lambda p: yaml.safe_load(p.read_text()), ".json": lambda p: json.loads(p.read_text())}
    if path.suffix == ".h5":
        (load_kernel if path.parent.name == "kernels" else Gaussians2D.load)(path)
    elif path.suffix == ".jsonl":  # grows line by line: the last one may be cut off, and its readers know
        for line in path.read_text().splitlines()[:-1]:
            json.loads(line)
    elif path.suffix == ".csv":
        assert len({len(row) for row in csv.reader(io.StringIO(path.read_text()))}) == 1
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix in readers:
        readers[path.suffix](path)


def _without_times(path: Path) -> Any:
    if path.suffix == ".tar":
        # Of a run that went on, the names in a checkpoint are other objects than those of the program: pickle then writes
        # another stream for the same content.
        return _plain(torch.load(path, weights_only=True))
    if path.name == "metrics.jsonl":
        return [_drop_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "summary.json":
        return _drop_times(json.loads(path.read_text()))
    if path.name == "results.csv":
        return [_drop_times(row) for row in csv.DictReader(io.StringIO(path.read_text()))]
    if path.suffix == ".html" or path.name == "model_card.md":  # show times
        return None
    return path.read_bytes()


def _drop_times(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TIMES}


def _plain(value: Any) -> Any:
    """Nested values in which tensors are their bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
