"""What a training step, a whole run and an evaluation cost, as a user starts them.

    python benchmarks/bench_training.py --device cuda

A step: from batches at hand, beside the network's passes and Adam alone, replayed as CUDA graphs as in training; crops a second
of whole epochs of 30 steps and more with 8 loading processes. A run of 12 seconds: how much of it is no step. Four runs side by side against one with
their batches. test.py on photographs of 1152 x 768 pixels. Random pictures and weights in a temporary folder.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import train_gs
from benchmarks import common
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS, build_model
from utils.device import start_fabric
from utils.pixels import normalise
from utils.training.graphs import set_up_graphs
from utils.training.run_folder import RunFolder
from utils.training.train_options import parse_train_options

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST = ROOT / "train_gs.py", ROOT / "test.py"
FAST = ["--precision", "bf16-mixed", "--channels-last"]
MANY = 240  # pictures: 30 steps of batch 8, so that the beginning of epochs does not decide
# Network, batch, crop, options, crops a second that an H100 or H200 reaches.
STEPS = [
    ("vgg", 1, 512, [], 200),
    ("vgg", 1, 512, FAST, 350),
    ("vgg", 8, 256, FAST, 1200),
    ("vgg_trans", 1, 512, [], 100),
    ("vgg_trans", 1, 512, FAST, 175),
]


class AtHand(list):
    """The batches of a loader, ``times`` over, as a loader that has them."""

    def __init__(self, loader: Any, times: int) -> None:
        super().__init__(list(loader) * times)
        self.batch_size, self.sampler = loader.batch_size, range(len(self) * loader.batch_size)


def train(folder: Path, options: Sequence[str], wrap: Callable[[Any], Any] = lambda loader: loader) -> list[dict]:
    """A run of ``train_gs.py`` in this process, its loader as ``wrap`` makes it -> the figures of its epochs."""
    make = train_gs.CropLoader
    argv = ["train_gs.py", *options, "--save-dir", str(folder), "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", argv):
        with mock.patch.object(train_gs, "CropLoader", lambda *some, **named: wrap(make(*some, **named))):
            train_gs.main()
    return RunFolder(folder).metrics()


def network_alone(options: Sequence[str], crop: int, batch: int, repeats: int) -> float:
    """Milliseconds of forward and backward pass and fused Adam."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, options)
    fabric = start_fabric(arguments)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    network = fabric.to_device(build_model(arguments.model_name).to(memory_format=layout))
    set_up_graphs(fabric, network, arguments)
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), 1e-6, fused=True))
    images = torch.zeros(batch, 3, crop, crop, dtype=torch.uint8, device=fabric.device)
    images = normalise(images).contiguous(memory_format=layout)

    def step() -> None:
        fabric.backward(model(images).density.sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return common.milliseconds(lambda: [step() for _ in range(repeats)], fabric.device.type, 3) / repeats


def steps(
    folder: Path, variants: list, fixed: Sequence[str], few: Path, many: Path, loaders: int, times: int = 6
) -> None:
    """A step beside the network alone and its parts, of ``few`` pictures; crops a second, of ``many``."""
    for model, batch, crop, more, least in variants:
        name = " ".join([model, f"{batch} x {crop}", *more])
        options = [*fixed, "--model-name", model, "--batch-size", str(batch), "--crop-size", str(crop), *more]
        at_hand = [*options, "--data-dir", str(few)]
        alone = network_alone(at_hand, crop, batch, 3 * times)
        ready = train(folder, [*at_hand, "--epochs", "2"], lambda loader: AtHand(loader, times))[-1]
        loaded = [*options, "--data-dir", str(many), "--num-workers", str(loaders)]
        fresh = train(folder, [*loaded, "--epochs", "3"])[1:]
        count = crops([ready]) / batch
        step = 1000 * ready["seconds"] / count
        parts = ", ".join(f"{part} {1000 * seconds / count:.2f}" for part, seconds in ready["time"].items())
        figure = f"{step:.2f} ms ({parts}), the network alone {alone:.2f}: {step / alone:.2f} times"
        common.print_goal(f"step, {name}", step <= 1.15 * alone, figure, "1.15 times")
        rate = crops(fresh) / sum(epoch["seconds"] for epoch in fresh)
        figure = f"{rate:.0f} with {loaders} loading processes, {ready['images_per_second']:.0f} at hand"
        common.print_goal(f"crops a second, {name}", rate >= least, figure, str(least))


def crops(epochs: Sequence[dict]) -> float:
    """How many were trained on."""
    return sum(epoch["images_per_second"] * epoch["seconds"] for epoch in epochs)


def whole_runs(folder: Path, fixed: Sequence[str], minutes: float, loaders: int) -> None:
    """A run of minutes as a user starts it: what of its time is training; four side by side against one."""

    def run(batch: int, *names: str) -> tuple[float, float]:
        """Crops a second of all while they trained, and the seconds in which the first did not train."""
        options = ["--batch-size", str(batch), "--num-workers", str(loaders // len(names)), "--minutes", str(minutes)]
        command, begin = [sys.executable, str(TRAIN), *fixed, *options, "--save-dir"], time.perf_counter()
        running = [subprocess.Popen([*command, folder / name], stdout=subprocess.DEVNULL) for name in names]
        if any([child.wait() for child in running]):
            raise RuntimeError(f"a run of {' '.join(names)} failed")
        wall, found = time.perf_counter() - begin, [RunFolder(folder / name).metrics() for name in names]
        seconds = [sum(epoch["seconds"] for epoch in epochs) for epochs in found]
        return sum(crops(epochs) / took for epochs, took in zip(found, seconds)), wall - seconds[0]

    rate, start_up = run(8, "one")
    figure = f"{start_up:.1f} s are no steps ({rate:.0f} crops a second)"
    common.print_goal(f"a run of {60 * minutes:.0f} s", start_up <= 12, figure, "10 s and a validation")
    large, four = run(32, "large")[0], run(8, *(f"job{number}" for number in range(4)))[0]
    figure = f"{four:.0f} crops a second, one at batch 32 {large:.0f}"
    common.print_goal("four runs side by side", four >= large, figure, "as many")


def evaluation(data: Path, folder: Path, device: str) -> None:
    """test.py on the training pictures."""
    weights = folder / "vgg.pth"
    torch.save(build_model("vgg").state_dict(), weights)
    fixed = ["--save-path", str(weights), "--data-dir", str(data), "--split", "train", "--device", device]
    for precision, least in (("32", 20), ("bf16-mixed", 30)):
        command = [sys.executable, str(TEST), *fixed, "--precision", precision]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rate = float(re.search(r"([\d.]+) images/s", done.stdout)[1])
        common.print_goal(f"test.py, {precision}", rate >= least, f"{rate:.1f} images a second", str(least))


def main() -> None:
    """Print the table."""
    arguments = common.parse_benchmark(common.benchmark_parser(__doc__))
    device = "0" if arguments.device == "cuda" else "cpu"
    print("| what | figure | goal |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"few": (24, 1024, 800), "many": (MANY, 768, 300), "seen": (60, 1152, 300)}
        few, many, seen = (common.make_data(folder / name, *size) for name, size in sizes.items())
        fixed = ["--backbone-weights", "none", "--device", device]
        steps(folder / "run", STEPS, fixed, few, many, loaders=8)
        recipe = ["--data-dir", str(many), "--crop-size", "256", *FAST, "--lr", "1e-5"]
        whole_runs(folder, [*fixed, *recipe], minutes=0.2, loaders=8)
        evaluation(seen, folder, device)


if __name__ == "__main__":
    main()
