"""Training: steps, schedules, precision, averages, processes."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
import torch
from commands import free_port
from torch.distributed.run import main as torchrun
from training_runs import Tiny, checkpoint, largest_difference, metrics, start, train, two_processes, weights

from datasets.loading import EpochSampler
from utils.training.schedule import rate_factor

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def no_dropout(monkeypatch):
    """Its mask follows the batch, the memory's order and the process."""
    monkeypatch.setattr(Tiny, "dropout", 0)


def test_order_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(10)) == sorted(sampler) and list(sampler) == first
    sampler.epoch = 1
    assert list(sampler) != first and list(EpochSampler(10, seed=4)) != first
    shares = [list(EpochSampler(10, 3, rank, 2)) for rank in range(2)]
    assert [index for pair in zip(*shares) for index in pair] == first
    padded = Counter(index for rank in range(4) for index in EpochSampler(10, 3, rank, 4))
    assert set(padded) == set(range(10)) and sum(padded.values()) == 12 and len(EpochSampler(10, 3, 0, 4)) == 3


def test_schedules():
    factor = rate_factor
    assert {factor("constant", p) for p in (0, 0.3, 0.99)} == {1.0}
    assert [factor("cosine", p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert factor("warmup-cosine", 0) == 0 and factor("warmup-cosine", 0.025) == pytest.approx(0.5, rel=0.01)
    assert factor("warmup-cosine", 0.5) == factor("cosine", 0.5)
    assert factor("constant", 0.05, 0.1) == pytest.approx(0.5) and factor("constant", 0.5, 0.1) == 1
    assert factor("warmup-cosine", 0.05, 0.2) == pytest.approx(0.25 * factor("cosine", 0.05))


@pytest.mark.parametrize("loss", ["gst", "dm-count"])
def test_accumulated_batches_are_one_larger_batch(data, tmp_path, no_dropout, steps, loss):
    """Of four crops in one step the gradient is the same, however they are divided; dm-count sums its transport term."""
    for size, batches in ((4, 1), (1, 4), (3, 2)):  # the last: three crops and one
        options = "--epochs", 1, "--loss", loss, "--batch-size", size, "--accumulate", batches
        train(data, tmp_path / f"{size}x{batches}", *options)
    first, *others = steps.gradients
    assert len(others) == 2 and first.abs().max() > 0
    for other in others:
        assert (other - first).abs().max() <= 1e-5 * first.abs().max()


def test_half_precision_trains_alike(data, tmp_path, no_dropout):
    losses = []
    for precision in ("32", "bf16-mixed"):
        train(data, tmp_path / precision, "--epochs", 1, "--batch-size", 4, "--precision", precision)
        losses.append(metrics(tmp_path / precision)[-1]["loss"])
        assert all(value.dtype == torch.float32 for value in weights(tmp_path / precision).values())
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


def test_memory_layout_workers_and_windows_do_not_change_what_is_learned(data, tmp_path, no_dropout):
    train(data, tmp_path / "plain", "--epochs", 2, "--lr", 1e-4)
    options = ["--epochs", 2, "--lr", 1e-4, "--channels-last", "--num-workers", 2, "--window", 48, "--deterministic"]
    try:
        train(data, tmp_path / "other", *options)
    finally:
        torch.use_deterministic_algorithms(False)
    plain, other = (weights(tmp_path / name) for name in ("plain", "other"))
    assert largest_difference(plain, other) < 1e-6
    kernels = [value for value in other.values() if value.ndim == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in kernels) and len(kernels) == 2


def test_a_resumed_run_continues_exactly(data, tmp_path):
    """A network whose dropout draws random numbers; workers that live on between epochs."""
    options = ["--batch-size", 2, "--lr", 1e-3]
    train(data, tmp_path / "whole", *options, "--epochs", 3)
    for epochs in (2, 3):
        train(data, tmp_path / "parts", *options, "--epochs", epochs, "--num-workers", 1)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == 0


def test_averaged_weights_are_exponential_chosen_and_resumed(data, tmp_path, steps):
    """After each step average = 0.75 average + 0.25 weights, from the weights after the first step on."""
    options = "--lr", 1e-2, "--ema", 0.75, "--epochs"
    train(data, tmp_path / "whole", *options, 2)
    average = steps.weights[0]
    for current in steps.weights[1:]:
        average = [0.75 * old + 0.25 * new for old, new in zip(average, current)]
    best = torch.load(tmp_path / "whole" / "best_model.pth", weights_only=True)
    for expected, value in zip(average, best.values(), strict=True):
        torch.testing.assert_close(value, expected)
    for epochs in (1, 2):
        train(data, tmp_path / "part", *options, epochs)
    whole, part = (checkpoint(tmp_path / name)["average"] for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole) and whole["n_averaged"] == 8
    assert all(torch.equal(best[key], whole[f"module.{key}"]) for key in best)


def test_two_processes_are_one_with_twice_the_batch(data, tmp_path, no_dropout):
    """Six steps that move a weight by up to 6e-3; --num-nodes, with both machines played by this one."""
    data = shutil.copytree(data, tmp_path / "data")
    for path in (data / "train").glob("IMG_0001.*"):  # two images to validate on, one for each process
        shutil.copy(path, data / "val")
    options = "--epochs", 3, "--lr", 1e-3, "--loss", "dm-count", "--calibrate", "--batch-size"
    train(data, tmp_path / "one", *options, 2)
    train(data, tmp_path / "other", *options, 1)
    (code, first, err), (other_code, second, _) = two_processes(data, tmp_path / "two", *options, 1, machines=2)
    assert code == other_code == 0, err
    assert "2 x cpu" in first and "2 x cpu" not in second
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert largest_difference(one, two) <= 1e-5 < 1e-3 < largest_difference(one, other)
    for here, there in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in {"loss", "mae", "mse", "gradient_norm", "val_mae", "val_mse", "calibration"} & here.keys():
            assert here[key] == pytest.approx(there[key], rel=1e-5), key
        assert here["mae"] <= here["mse"] < 2 * here["mae"]
    assert here["val_mae"] < here["val_mse"] < 2 * here["val_mae"]


def test_torchrun_starts_both(data, tmp_path):
    """Its two processes write down their environment, in which two trainings then begin."""
    launch = f"--nproc-per-node 2 --master-port {free_port()} --no-python bash -c".split()
    torchrun([*launch, f"env > {tmp_path}/$RANK"])
    runs = []
    for rank in "01":
        given = dict(line.split("=", 1) for line in (tmp_path / rank).read_text().splitlines() if "=" in line)
        world = {name: value for name, value in given.items() if os.environ.get(name) != value}
        assert given["RANK"] == given["LOCAL_RANK"] == rank and given["WORLD_SIZE"] == "2"
        runs.append(start(data, tmp_path / "run", "--epochs", 1, **{**world, "TORCHELASTIC_USE_AGENT_STORE": "False"}))
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert [out.count("2 x cpu") for out, _ in outputs] == [1, 0] and len(metrics(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "best_model.pth").exists()


def test_the_variance_of_attention_is_a_tenth_of_its_sum_in_the_loss(data, tmp_path, monkeypatch, no_dropout):
    """Of vgg_trans: 0.1 x the sum over layers of sum(var(A, last dimension, unbiased)), on every crop alike here."""
    maps = torch.rand(2, 1, 3, 5, 5, generator=torch.Generator().manual_seed(1))

    class Attentive(Tiny):
        def forward(self, images):
            attention = tuple(layer.expand(len(images), -1, -1, -1) for layer in maps)
            return super().forward(images)._replace(attention=attention)

    losses = []
    for network in (Tiny, Attentive):
        monkeypatch.setattr("train_gs.build_model", network)
        train(data, tmp_path / network.__name__, "--epochs", 1, "--batch-size", 4)
        losses.append(metrics(tmp_path / network.__name__)[0]["loss"])
    expected = 0.1 * sum(float(layer.var(dim=-1).sum()) for layer in maps)
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4) and expected > 0.1
