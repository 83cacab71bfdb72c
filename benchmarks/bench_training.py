"""What a training step costs, as a user starts it.

    python benchmarks/bench_training.py [--device cuda]

A step from batches at hand, beside the network's passes and Adam alone, replayed as CUDA graphs as in training; crops a second
from batches at hand, and of whole epochs of 30 steps and more with 8 loading processes. Random pictures and weights in a
temporary folder.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
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

FAST = ["--precision", "bf16-mixed", "--channels-last"]
# Network, batch, crop, options.
STEPS = [
    ("vgg", 1, 512, []),
    ("vgg", 1, 512, FAST),
    ("vgg", 8, 256, FAST),
    ("vgg_trans", 1, 512, []),
    ("vgg_trans", 1, 512, FAST),
]
LOADERS = 8  # loading processes
PICTURES = (
    240,
    768,
    300,
)  # how many, their width, people; 30 steps of batch 8, so that the beginning of epochs does not decide


class AtHand(list):
    """The batches of a loader as a loader that has them."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self.batch_size, self.sampler, self.close = loader.batch_size, loader.sampler, loader.close


def train(folder: Path, options: Sequence[str], wrap: Callable[[Any], Any] = lambda loader: loader) -> dict[str, Any]:
    """A run of ``train_gs.py`` in this process, its loader as ``wrap`` makes it -> the figures of its last epoch."""
    make, argv = (
        train_gs.CropLoader,
        ["train_gs.py", *options, "--epochs", "2", "--save-dir", str(folder), "--overwrite"],
    )
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", argv):
        with mock.patch.object(train_gs, "CropLoader", lambda *some, **named: wrap(make(*some, **named))):
            train_gs.main()
    return RunFolder(folder).metrics()[-1]


def network_alone(options: Sequence[str], repeats: int = 18) -> float:
    """Milliseconds of forward and backward pass and fused Adam."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, options)
    fabric = start_fabric(arguments)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    network = fabric.to_device(build_model(arguments.model_name).to(memory_format=layout))
    set_up_graphs(fabric, network, arguments)
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), 1e-6, fused=True))
    size = arguments.batch_size, 3, arguments.crop_size, arguments.crop_size
    images = normalise(torch.zeros(size, dtype=torch.uint8, device=fabric.device)).contiguous(memory_format=layout)

    def steps() -> None:
        for _ in range(repeats):
            fabric.backward(model(images).density.sum())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return common.milliseconds(steps, fabric.device.type, 3) / repeats


def main() -> None:
    """Print the table."""
    fixed = ["--backbone-weights", "none", "--device", "0" if common.parse_device(__doc__) == "cuda" else "cpu"]
    columns = "step", "ms (its parts)", "the network alone", "ratio", "crops a second", "with loading"
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as name:
        fixed += ["--data-dir", str(common.make_data(Path(name, "data"), *PICTURES)), "--num-workers", str(LOADERS)]
        for model, batch, crop, more in STEPS:
            options = [*fixed, "--model-name", model, "--batch-size", str(batch), "--crop-size", str(crop), *more]
            alone, ready = network_alone(options), train(Path(name, "run"), options, AtHand)
            rate, loaded = ready["images_per_second"], train(Path(name, "run"), options)["images_per_second"]
            whole = 1000 * batch / rate
            parts = (f"{part} {whole * took / ready['seconds']:.2f}" for part, took in ready["time"].items())
            what = " ".join([model, f"{batch} x {crop}", *more])
            figures = f"{alone:.2f} | {whole / alone:.2f} | {rate:.0f} | {loaded:.0f}"
            print(f"| {what} | {whole:.2f} ({', '.join(parts)}) | {figures} |", flush=True)


if __name__ == "__main__":
    main()
