"""A training step never waits for the device: operations that would are counted, on a CPU."""

from __future__ import annotations

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
from utils.training.steps import Steps, WeightAverage
from utils.training.train_options import parse_train_options

WAITS = set("_local_scalar_dense nonzero masked_select bincount _unique _unique2 unique_consecutive unique_dim".split())


class Operations(TorchDispatchMode):
    """Counts those by name for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name.rstrip("_") in ("index", "index_put", "_index_put_impl"):  # by a mask: looks for what is not zero
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            name = "nonzero" if masks else name
        self.waits.update([name] * (name in WAITS))
        return function(*args, **(kwargs or {}))


def test_what_is_counted():
    with Operations() as operations:
        values = torch.ones(3)
        assert values.sum().item() == 3 and values[values > 0].unique().numel() == 1
    assert operations.waits == {"_local_scalar_dense": 1, "nonzero": 1, "_unique2": 1}


class OneCell(nn.Module):
    """A network of two operations."""

    name = "vgg"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, CROP // 8, CROP // 8))

    def forward(self, images):
        return Prediction(self.weight.expand(len(images), -1, -1, -1).abs(), ())


def waits_of_an_epoch(batch, batches, arguments) -> Counter[str]:
    """Of so many times the same batch."""
    fabric, network = Fabric(accelerator="cpu", devices=1), OneCell()
    average = WeightAverage(network, arguments.ema) if arguments.ema else None
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), fused=True))
    loader = DataLoader(range(batches), sampler=range(batches), collate_fn=lambda _: batch)
    parts = {"loader": loader, "network": network, "model": model, "optimizer": optimizer, "average": average}
    parts["steps"] = Steps(fabric, arguments)
    run = train_gs.Run(**dict.fromkeys(train_gs.Run._fields) | parts)
    with Operations() as operations:
        train_gs.train_epoch(fabric, run, arguments, 0)
    return operations.waits


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("waits") / "data")


@pytest.mark.parametrize("options", ["", "--ema 0.9 --grad-clip 1 --accumulate 3 --count-weight 0.5"])
@pytest.mark.parametrize("loss", ["gst", "bl", "bl+", "dm-count"])
def test_a_step_waits_for_nothing(root, monkeypatch, loss, options):
    """Guard and sums are read at the end of an epoch, and every 32 batches: twice the batches, no wait more."""
    words = f"--data-dir x --crop-size {CROP} --loss {loss} {options}".split()
    arguments = parse_train_options(("vgg",), tuple(LOSSES), KERNEL_OPTIONS, words)
    crowd = Crowd(root, CROP, "train", kernel=build_kernel(loss))
    batch = collate([crowd[index] for index in (3, 1, 0, 2)])  # of 30, 0, 5 and 1 points
    once, twice = (waits_of_an_epoch(batch, batches, arguments) for batches in (3, 6))
    assert once == twice and set(twice) == {"_local_scalar_dense"}
