"""Training: steps, schedules, precision, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from commands import ROOT, errors, free_port
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from datasets.sampler import EpochSampler
from utils.training.schedule import rate_factor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)


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
    assert (
        factor("cosine", 0) == 1
        and factor("cosine", 0.5) == pytest.approx(0.5)
        and factor("cosine", 1) == pytest.approx(0)
    )
    assert factor("warmup-cosine", 0) == 0 and factor("warmup-cosine", 0.025) == pytest.approx(0.5, rel=0.01)
    assert factor("warmup-cosine", 0.5) == factor("cosine", 0.5)
    assert factor("constant", 0.05, 0.1) == pytest.approx(0.5) and factor("constant", 0.5, 0.1) == 1
    assert factor("warmup-cosine", 0.05, 0.2) == pytest.approx(0.25 * factor("cosine", 0.05))


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of each step, as the optimizer finds it: [numbers of all parameters]."""
    found, step = [], torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        found.append(torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    return found


@pytest.mark.parametrize("loss", ["gst", "dm-count"])
def test_accumulated_batches_are_one_larger_batch(data, tmp_path, monkeypatch, gradients, loss):
    """Of four crops in one step the gradient is the same, however they are divided; dm-count sums its transport term."""
    monkeypatch.setattr(Tiny, "dropout", 0)  # whose mask follows the batch
    divided = ((4, 1), (2, 2), (1, 4), (3, 2))  # the last: three crops and one
    for size, batches in divided:
        options = "--epochs", 1, "--loss", loss, "--batch-size", size, "--accumulate", batches
        train(data, tmp_path / f"{size}x{batches}", *options)
    first = gradients[0]
    assert len(gradients) == len(divided) and first.abs().max() > 0
    for other in gradients[1:]:
        assert (other - first).abs().max() <= 1e-5 * first.abs().max()
    train(data, tmp_path / "three", "--epochs", 1, "--loss", loss, "--batch-size", 3)
    assert len(gradients) == len(divided) + 2 and (gradients[-1] - first).abs().max() > 1e-2 * first.abs().max()


def test_clipping_bounds_the_gradient(data, tmp_path, gradients):
    train(data, tmp_path / "free", "--epochs", 1)
    train(data, tmp_path / "clipped", "--epochs", 1, "--grad-clip", 0.5)
    norms = [float(gradient.norm()) for gradient in gradients]
    assert min(norms[:4]) > 0.6 and norms[4:] == pytest.approx([0.5] * 4, rel=1e-3)


def test_mixed_precision_and_memory_layout_train_alike(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "dropout", 0)  # whose mask follows the memory's order
    losses = {}
    for name, options in {"plain": (), "bf16": ("--precision", "bf16-mixed"), "layout": ("--channels-last",)}.items():
        train(data, tmp_path / name, "--epochs", 1, "--batch-size", 4, "--lr-schedule", "cosine", *options)
        losses[name] = metrics(tmp_path / name)[-1]["loss"]
        assert all(value.dtype == torch.float32 for value in weights(tmp_path / name).values())
    assert losses["layout"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.05) and losses["bf16"] != losses["plain"]
    _, err = train(data, tmp_path / "half", "--precision", "16-mixed", code=1)
    assert errors(err) == ["error: --precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU"]


def test_workers_do_not_change_the_result_and_a_resumed_run_continues_exactly(data, tmp_path):
    """A network whose dropout draws random numbers; workers that live on between epochs."""
    options = ["--batch-size", 2, "--lr", 1e-3]
    train(data, tmp_path / "whole", *options, "--epochs", 3)
    train(data, tmp_path / "parts", *options, "--epochs", 2, "--num-workers", 1)
    train(data, tmp_path / "parts", *options, "--epochs", 3, "--num-workers", 1)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == 0


def test_two_processes_are_one_with_twice_the_batch(data, tmp_path, monkeypatch):
    """Six steps that move a weight by up to 6e-3."""
    monkeypatch.setattr(Tiny, "dropout", 0)
    fixed = (
        f"--device cpu --backbone-weights none --crop-size 64 --epochs 3 --lr 1e-3 --loss dm-count --data-dir {data}"
    )
    train(data, tmp_path / "one", *fixed.split(), "--batch-size", 2)
    train(data, tmp_path / "other", *fixed.split(), "--batch-size", 1)
    launch = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} tests/train_tiny.py"
    done = subprocess.run(
        [sys.executable, *launch.split(), *fixed.split(), "--save-dir", str(tmp_path / "two"), "--batch-size", "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert largest_difference(one, two) <= 1e-5 < 1e-3 < largest_difference(one, other)
    for here, there in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ("loss", "mae", "mse", "gradient_norm"):
            assert here[key] == pytest.approx(there[key], rel=1e-5), key
    assert here["val_mae"] == pytest.approx(there["val_mae"], rel=1e-5)


def test_the_variance_of_attention_is_a_tenth_of_its_sum_in_the_loss(data, tmp_path, monkeypatch):
    """Of vgg_trans: 0.1 x the sum over layers of sum(var(A, last dimension, unbiased)), on every crop alike here."""
    maps = torch.rand(2, 1, 3, 5, 5, generator=torch.Generator().manual_seed(1))

    class Attentive(Tiny):
        dropout = 0

        def forward(self, images):
            return (
                super()
                .forward(images)
                ._replace(attention=tuple(layer.expand(len(images), -1, -1, -1) for layer in maps))
            )

    losses = []
    for network in (Tiny, Attentive):
        monkeypatch.setattr(Tiny, "dropout", 0)
        monkeypatch.setattr(train_gs, "build_model", network)
        train(data, tmp_path / network.__name__, "--epochs", 1, "--batch-size", 4)
        losses.append(metrics(tmp_path / network.__name__)[0]["loss"])
    expected = 0.1 * sum(float(layer.var(dim=-1).sum()) for layer in maps)
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4) and expected > 0.1
