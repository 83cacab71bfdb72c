"""What a training step would launch on a GPU, and that it never waits for it: counted by operation, on a CPU."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from crowd_data import CROP, make_root
from lightning_fabric import Fabric
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from training_runs import Tiny

import train_gs
from datasets.crowd import Crowd, collate
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES, build_kernel, build_loss
from models import Prediction
from utils.training import steps
from utils.training.steps import Guard, Steps, WeightAverage
from utils.training.train_options import parse_train_options

VIEWS = set(
    "view _unsafe_view reshape transpose t permute expand slice select unsqueeze squeeze detach alias as_strided unbind split "
    "split_with_sizes lift_fresh narrow".split()
)
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
}


class Operations(TorchDispatchMode):
    """Counts operations by name, without the underscore of those in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        name = name if name in WAITS else name.rstrip("_")
        if name in ("index", "index_put", "_index_put_impl"):  # by a mask: looks for what is not zero
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            name = "nonzero" if masks else name
        self.count[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def launches(self) -> int:
        return sum(count for name, count in self.count.items() if name not in VIEWS)

    @property
    def waits(self) -> dict[str, int]:
        return {name: count for name, count in self.count.items() if name in WAITS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("waits") / "data")


def batch_of(root: Path, loss: str, size: int):
    crowd = Crowd(root, CROP, "train", kernel=build_kernel(loss))
    return collate([crowd[index] for index in (3, 1, 0, 2)[:size]])  # of 30, 0, 5 and 1 points


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("name", "most"), [("gst", 40), ("bl", 40), ("bl+", 40), ("dm-count", 1500)])
def test_a_loss_and_its_gradient_launch_little_and_wait_for_nothing(root, name, most, size):
    loss, batch = build_loss(name), batch_of(root, name, size)
    density = torch.rand(size, 1, CROP // 8, CROP // 8, requires_grad=True)
    loss(density, batch).backward()
    density.grad = None
    with Operations() as operations:
        loss(density, batch).backward()
    assert density.grad.any() and 0 < operations.launches <= most
    assert operations.waits == {}


def test_the_number_of_operations_does_not_depend_on_the_batch(root):
    launches = {}
    for size in (1, 4):
        density, batch = torch.rand(size, 1, 6, 6, requires_grad=True), batch_of(root, "dm-count", size)
        with Operations() as operations:
            build_loss("dm-count")(density, batch).backward()
        launches[size] = operations.launches
    assert launches[1] == launches[4]


def test_what_is_counted():
    with Operations() as operations:
        values = torch.ones(3)
        assert values.sum().item() == 3 and values[values > 0].unique().numel() == 1
    assert operations.waits == {"_local_scalar_dense": 1, "nonzero": 1, "_unique2": 1} and operations.launches == 6


def epoch_operations(network: nn.Module, batch, batches: int, arguments) -> Operations:
    """What an epoch of so many times the same batch launches."""
    fabric = Fabric(accelerator="cpu", devices=1)
    guard = Guard(fabric.device)
    average = WeightAverage(network, arguments.ema, guard) if arguments.ema else None
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), fused=True))
    loader = DataLoader(range(batches), sampler=range(batches), collate_fn=lambda _: batch)
    parts = {"loader": loader, "network": network, "model": model, "optimizer": optimizer, "average": average}
    parts["steps"] = Steps(fabric, arguments, guard)
    run = train_gs.Run(**dict.fromkeys(train_gs.Run._fields) | parts)
    with Operations() as operations:
        train_gs.train_epoch(fabric, run, arguments, 0)
    return operations


def options_of(root: Path, folder: Path, *options: str):
    fixed = ["--data-dir", str(root), "--save-dir", str(folder), "--crop-size", str(CROP)]
    return parse_train_options(("vgg",), tuple(LOSSES), KERNEL_OPTIONS, [*fixed, *options])


@pytest.mark.parametrize("loss", ["gst", "dm-count"])
@pytest.mark.parametrize("options", [(), ("--ema", "0.9", "--grad-clip", "1", "--accumulate", "3")])
def test_steps_of_training_wait_once_for_all(root, tmp_path, monkeypatch, loss, options):
    """Twice the batches, no wait more: guard and sums are read at the end of an epoch, and every 32 batches."""
    monkeypatch.setattr(steps, "SHOW_SECONDS", math.inf)
    arguments, waits = options_of(root, tmp_path, "--loss", loss, *options), {}
    for batches in (3, 6):
        operations = epoch_operations(Tiny(), batch_of(root, loss, 2), batches, arguments)
        assert set(operations.waits) <= {"_local_scalar_dense"}
        waits[batches] = operations.count["_local_scalar_dense"]
        assert operations.count["_fused_adam"] == batches // arguments.accumulate
    assert waits[3] == waits[6] > 0


class OneCell(nn.Module):
    """A network of two operations: what a step launches beside it is what a replayed network leaves to be launched."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, CROP // 8, CROP // 8))

    def forward(self, images):
        return Prediction(self.weight.expand(len(images), -1, -1, -1).abs(), ())


def test_beside_the_network_a_step_launches_little(root, tmp_path, monkeypatch):
    """At 5 us a launch a fifth of a millisecond, beside two or three of arithmetic at crop 512."""
    monkeypatch.setattr(steps, "SHOW_SECONDS", math.inf)
    arguments, batch = options_of(root, tmp_path), batch_of(root, "gst", 1)
    counts = {batches: epoch_operations(OneCell(), batch, batches, arguments).launches for batches in (3, 6)}
    assert 0 < (counts[6] - counts[3]) / 3 <= 40
