"""A loss or gradient that is not finite never reaches the weights, however late somebody looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import lightning_fabric
import pytest
import torch
from commands import ROOT, errors, free_port
from lightning_fabric.plugins import MixedPrecision
from training_runs import Tiny, make_data, metrics, train

import train_gs
from datasets.sampler import EpochSampler
from models import Prediction
from utils.files import list_images
from utils.training import steps
from utils.training.steps import WeightAverage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("guard") / "data")


BROKEN = {
    "density": lambda density: density * float("nan"),
    "loss": lambda density: density * 0 + 3e38,  # finite, but their sum is not
    "gradient": lambda density: density + (density * 0).sqrt(),  # 0, with derivative infinity * 0
}


@pytest.fixture
def watched(monkeypatch):
    """The state after each step: weights, moments and step of Adam, averaged weights."""
    states, update = [], WeightAverage.update
    steps, step = [], torch.optim.Adam.step

    def recorded_step(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        steps.append([{key: value.clone() for key, value in entry.items()} for entry in self.state.values()])
        return result

    def recorded_update(self, model):
        update(self, model)
        networks = [{key: value.clone() for key, value in each.state_dict().items()} for each in (model, self.module)]
        states.append((*networks, steps[-1]))

    monkeypatch.setattr(torch.optim.Adam, "step", recorded_step)
    monkeypatch.setattr(WeightAverage, "update", recorded_update)
    return states


def break_at(monkeypatch, number, kind):
    """The density of batch ``number`` of the run is broken; -> one entry for each batch that was tried."""
    calls = []

    class Broken(Tiny):
        def forward(self, images):
            density, attention = super().forward(images)
            calls.extend([1] * self.training)
            here = self.training and len(calls) == number + 1
            return Prediction(BROKEN[kind](density) if here else density, attention)

    monkeypatch.setattr(train_gs, "build_model", Broken)
    return calls


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(("number", "accumulate"), [(1, 1), (3, 1), (2, 2), (3, 2)])
def test_the_state_is_the_one_before_the_batch(data, tmp_path, monkeypatch, watched, kind, number, accumulate):
    calls = break_at(monkeypatch, number, kind)
    options = ["--epochs", 2, "--lr", 1e-3, "--ema", 0.9, "--accumulate", accumulate]
    _, err = train(data, tmp_path / "run", *options, code=1)
    assert len(calls) == 4  # looked at when the epoch of four batches is over
    order = [list_images(data / "train")[index].stem for index in EpochSampler(4, 4073)]
    group = number // accumulate * accumulate
    last = group + accumulate - 1 if kind == "gradient" else number
    names = ", ".join(order[group : last + 1] if kind == "gradient" else [order[number]])
    what = "gradient" if kind == "gradient" else "loss"
    (line,) = errors(err)
    assert line.startswith(f"error: epoch 0, batch {last}: the {what} of {names} is not finite; lower --lr (")
    before = watched[number // accumulate - 1]  # after the last whole step
    assert all(value.isfinite().all() for value in before[0].values())
    for state in watched[number // accumulate :]:
        for one, other in zip(before[:2], state[:2]):
            assert_same(one, other)
        for one, other in zip(before[2], state[2], strict=True):
            assert_same(one, other)
    saved = torch.load(tmp_path / "run" / "trouble" / "last_good_ckpt.tar", weights_only=True)
    assert_same(saved["model_state_dict"], before[0])
    for entry, expected in zip(saved["optimizer_state_dict"]["state"].values(), before[2], strict=True):
        assert_same(entry, expected)
    assert_same({key: saved["average"][f"module.{key}"] for key in before[1]}, before[1])
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    resume = tmp_path / "run" / "trouble" / "last_good_ckpt.tar"
    out, _ = train(data, tmp_path / "again", *options, "--resume", resume)
    assert "going on with epoch 0" in out and [row["epoch"] for row in metrics(tmp_path / "again")] == [0, 1]


def test_a_later_epoch_is_looked_at_as_the_first_is(data, tmp_path, monkeypatch):
    calls = break_at(monkeypatch, 6, "density")
    _, err = train(data, tmp_path, "--epochs", 3, "--lr", 1e-3, code=1)
    assert len(calls) == 8 and "epoch 1, batch 2: the loss of" in err


def test_with_float16s_scaler_too_the_state_is_the_one_before_the_batch(data, tmp_path, monkeypatch, watched):
    """The averaged weights stand still, and the scale is not halved in every batch until somebody looks."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))

    class WithScaler(lightning_fabric.Fabric):
        def __init__(self, precision, **options):
            super().__init__(**options, plugins=[plugin])

    monkeypatch.setattr(lightning_fabric, "Fabric", WithScaler)
    break_at(monkeypatch, 2, "density")
    _, err = train(data, tmp_path, "--epochs", 1, "--lr", 1e-3, "--ema", 0.9, code=1)
    assert "epoch 0, batch 2: the loss of" in err
    before, last = watched[1], watched[-1]
    assert len(watched) == 4 and not torch.equal(before[0]["layers.0.weight"], before[1]["layers.0.weight"])
    saved = torch.load(tmp_path / "trouble" / "last_good_ckpt.tar", weights_only=True)
    assert_same(saved["model_state_dict"], before[0])
    assert_same(last[1], before[1])
    assert saved["scaler"]["scale"] == 2.0 and plugin.scaler.get_scale() == 0.5


def test_the_guard_is_looked_at_during_an_epoch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "CHECK_EVERY", 3)
    calls = break_at(monkeypatch, 0, "density")
    _, err = train(data, tmp_path, "--epochs", 1, code=1)
    assert len(calls) == 3 and "epoch 0, batch 0: the loss of" in err


def two_processes(data, folder, *options, **environment):
    """A training of two processes, in which one meets something -> its exit code and error lines."""
    launch = (
        f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} tests/train_tiny.py"
    )
    fixed = (
        f"--device cpu --backbone-weights none --crop-size 64 --epochs 3 --lr 1e-3 --num-workers 0 --data-dir {data}"
    )
    start = time.monotonic()
    done = subprocess.run(
        [*launch.split(), *fixed.split(), *options, "--save-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - start < 60
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error:")]


def test_two_processes_stop_together(data, tmp_path):
    """What one of them meets stops both, without waiting for a broken connection."""
    code, lines = two_processes(data, tmp_path, BROKEN_RANK="1")
    assert code != 0 and len(set(lines)) == 1
    assert "epoch 1, batch 0: the loss of" in lines[0] and "is not finite" in lines[0]
    state = torch.load(tmp_path / "trouble" / "last_good_ckpt.tar", weights_only=True)
    assert state["epoch"] == 0 and all(value.isfinite().all() for value in state["model_state_dict"].values())
    assert not list((tmp_path / "trouble").glob(".*partial*"))


@pytest.mark.parametrize(("split", "done"), [("train", 0), ("val", 1)])
def test_a_file_that_one_process_cannot_read_stops_both_with_its_line(data, tmp_path, split, done):
    copy = shutil.copytree(data, tmp_path / "data")
    for path in (copy / "val").glob("*.*"):  # two images, one for each process
        shutil.copy(path, path.with_name("COPY" + path.suffix))
    options = "--val-start", "0", "--val-every", "1"
    environment = {"UNREADABLE_RANK": "1", "UNREADABLE_SPLIT": split}
    code, lines = two_processes(copy, tmp_path / "run", *options, **environment)
    assert code != 0 and len(set(lines)) == 1 and f"{copy / split}" in lines[0] and "cannot be read" in lines[0]
    assert [path.name for path in (tmp_path / "run").glob("*.tar")] == [f"{done}_ckpt.tar"]
    assert not (tmp_path / "run" / "trouble").exists()
