"""What a training step would launch on a GPU, and that it never waits for it: counted by operation, on a CPU."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from crowd_data import CROP, make_root
from lightning_fabric import Fabric
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import train_gs
from datasets.crowd import Crowd, collate
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES, build_kernel
from models import Prediction
from utils.training.steps import Guard, Steps, WeightAverage
from utils.training.train_options import parse_train_options

VIEWS = set(
    "view _unsafe_view reshape transpose t permute expand slice select unsqueeze squeeze detach alias as_strided unbind split "
    "split_with_sizes lift_fresh narrow".split()
)
WAITS = set("_local_scalar_dense nonzero masked_select bincount _unique _unique2 unique_consecutive unique_dim".split())


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


def test_what_is_counted():
    with Operations() as operations:
        values = torch.ones(3)
        assert values.sum().item() == 3 and values[values > 0].unique().numel() == 1
    assert operations.waits == {"_local_scalar_dense": 1, "nonzero": 1, "_unique2": 1} and operations.launches == 6


class OneCell(nn.Module):
    """A network of two operations: what a step launches beside it is what a replayed network leaves to be launched."""

    name = "vgg"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, CROP // 8, CROP // 8))

    def forward(self, images):
        return Prediction(self.weight.expand(len(images), -1, -1, -1).abs(), ())


def epoch_operations(batch, batches, arguments) -> Operations:
    """What an epoch of so many times the same batch launches."""
    fabric, network = Fabric(accelerator="cpu", devices=1), OneCell()
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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("waits") / "data")


@pytest.mark.parametrize("options", ["", "--ema 0.9 --grad-clip 1 --accumulate 3"])
@pytest.mark.parametrize(("loss", "most"), [("gst", 40), ("bl", 40), ("bl+", 40), ("dm-count", 1500)])
def test_beside_the_network_a_step_launches_little_and_waits_for_nothing(root, monkeypatch, loss, most, options):
    """At 5 us a launch 40 are a fifth of a millisecond, beside two or three of arithmetic at crop 512.

    Guard and sums are read at the end of an epoch, and every 32 batches: twice the batches, no wait more.
    """
    monkeypatch.setattr("utils.training.steps.SHOW_SECONDS", math.inf)
    words = f"--data-dir x --crop-size {CROP} --loss {loss} {options}".split()
    arguments = parse_train_options(("vgg",), tuple(LOSSES), KERNEL_OPTIONS, words)
    crowd, launches = Crowd(root, CROP, "train", kernel=build_kernel(loss)), []
    for indices in ((3,), (3, 1, 0, 2)):  # of 30, 0, 5 and 1 points
        batch = collate([crowd[index] for index in indices])
        once, twice = (epoch_operations(batch, batches, arguments) for batches in (3, 6))
        assert once.waits == twice.waits and set(twice.waits) == {"_local_scalar_dense"}
        assert twice.count["_fused_adam"] == 6 // arguments.accumulate
        launches.append((twice.launches - once.launches) / 3)
    assert 0 < launches[0] <= launches[1] <= most
