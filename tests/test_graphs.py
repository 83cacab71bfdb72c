"""Training passes that are replayed: here by a stand-in that keeps inputs, outputs and gradients in one place, as a graph does."""

from __future__ import annotations

import pytest
import torch
from training_runs import Tiny, largest_difference, metrics, train, weights

from models import Prediction
from utils.training.graphs import own_gradients, replay_training

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def replays(monkeypatch):
    """Stand in for ``make_graphed_callables``; -> the shapes that were replayed."""
    shapes = []

    def make_graphed_callables(network, sample):
        assert network.training and not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        plain, (images,) = network.forward, sample
        parameters = tuple(network.parameters())
        gradients = [torch.full_like(parameter, float("nan")) for parameter in parameters]
        density = []

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, batch, *_):
                images.copy_(batch)
                with torch.enable_grad():
                    density[:] = [plain(images).density]
                shapes.append(tuple(batch.shape))
                return density[0].detach()

            @staticmethod
            def backward(ctx, gradient):
                for memory, found in zip(gradients, torch.autograd.grad(density[0], parameters, gradient)):
                    memory.copy_(found)
                return None, *[memory.detach() for memory in gradients]

        network.forward = lambda batch: Prediction(Replayed.apply(batch, *parameters), ())
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return shapes


@pytest.fixture
def graphs(monkeypatch, replays):
    def set_up(fabric, network, arguments):
        images = torch.zeros(arguments.batch_size, 3, arguments.crop_size, arguments.crop_size)
        assert replay_training(network, images, "32") is None
        if arguments.accumulate > 1:
            own_gradients(network)

    monkeypatch.setattr("train_gs.set_up_graphs", set_up)
    return replays


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--accumulate", 4, "--grad-clip", 0.5),
        ("--batch-size", 3, "--accumulate", 2),  # the last batch is smaller
        ("--loss", "dm-count", "--ema", 0.9, "--weight-decay", 0.1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_a_replayed_run_learns_the_same_bits(data, tmp_path, graphs, monkeypatch, options):
    """With dropout, which draws other masks in each replay; also a run that goes on."""
    fixed = "--lr", 1e-3, *options, "--epochs"
    train(data, tmp_path / "replayed", *fixed, 2)
    size = 3 if "--batch-size" in options else 1
    assert set(graphs) == {(size, 3, 64, 64)} and len(graphs) == (2 if size == 3 else 8)
    train(data, tmp_path / "replayed", *fixed, 3)
    monkeypatch.setattr("train_gs.set_up_graphs", lambda *_: None)
    train(data, tmp_path / "launched", *fixed, 3)
    assert largest_difference(weights(tmp_path / "replayed"), weights(tmp_path / "launched")) == 0
    assert metrics(tmp_path / "replayed")[-1]["val_mae"] == metrics(tmp_path / "launched")[-1]["val_mae"]


def test_other_shapes_and_evaluation_go_through_the_network(replays):
    network = Tiny()
    assert replay_training(network, torch.zeros(2, 3, 32, 32), "32") is None and network.training
    for shape, training in (((2, 32), True), ((1, 32), True), ((2, 48), True), ((2, 32), False)):
        replays.clear()
        density = network.train(training)(torch.rand(shape[0], 3, shape[1], 32)).density
        assert density.shape == (shape[0], 1, shape[1] // 8, 4) and bool(replays) == (shape == (2, 32) and training)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_capture_that_fails_changes_nothing(monkeypatch):
    def fails(network, sample):
        network.forward = None
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing. Try\nsomething else")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    network = Tiny().eval()
    before = network.forward
    message = replay_training(network, torch.zeros(1, 3, 32, 32), "bf16-mixed")
    assert message == "CUDA error: operation not permitted when stream is capturing"
    assert network.forward == before and not network.training
