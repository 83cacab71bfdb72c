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
LOADERS, TIMES = 8, 6  # loading processes; passes over the batches at hand in an epoch of them
FEW, MANY = (
    (24, 1024, 800),
    (240, 768, 300),
)  # pictures, their width, people; 30 steps of batch 8 hide an epoch's beginning


class AtHand(list):
    """The batches of a loader, several times over, as a loader that has them."""

    def __init__(self, loader: Any) -> None:
        super().__init__(list(loader) * TIMES)
        self.batch_size, self.sampler = loader.batch_size, range(len(self) * loader.batch_size)


def train(folder: Path, options: Sequence[str], wrap: Callable[[Any], Any] = lambda loader: loader) -> list[dict]:
    """A run of ``train_gs.py`` in this process, its loader as ``wrap`` makes it -> the figures of its epochs."""
    make = train_gs.crop_loader
    argv = ["train_gs.py", *options, "--save-dir", str(folder), "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", argv):
        with mock.patch.object(train_gs, "crop_loader", lambda *some, **named: wrap(make(*some, **named))):
            train_gs.main()
    return RunFolder(folder).metrics()


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
    print(
        "| step | ms (its parts) | the network alone | ratio | crops a second | with loading |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = str(common.make_data(folder / "few", *FEW))
        many = str(common.make_data(folder / "many", *MANY))
        for model, batch, crop, more in STEPS:
            options = [*fixed, "--model-name", model, "--batch-size", str(batch), "--crop-size", str(crop), *more]
            at_hand = [*options, "--data-dir", few]
            alone = network_alone(at_hand)
            ready = train(folder / "run", [*at_hand, "--epochs", "2"], AtHand)[-1]
            loaded = [*options, "--data-dir", many, "--num-workers", str(LOADERS), "--epochs", "2"]
            rate = train(folder / "run", loaded)[-1]["images_per_second"]
            milliseconds = 1000 * batch / ready["images_per_second"]
            parts = {part: milliseconds * seconds / ready["seconds"] for part, seconds in ready["time"].items()}
            shown = ", ".join(f"{part} {took:.2f}" for part, took in parts.items())
            what = " ".join([model, f"{batch} x {crop}", *more])
            figures = f"{alone:.2f} | {milliseconds / alone:.2f} | {ready['images_per_second']:.0f} | {rate:.0f}"
            print(f"| {what} | {milliseconds:.2f} ({shown}) | {figures} |", flush=True)


if __name__ == "__main__":
    main()
