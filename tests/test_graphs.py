"""Training passes that are replayed: here by a stand-in that keeps inputs, outputs and gradients in one place, as a graph does."""

from __future__ import annotations

import pytest
import torch
from commands import errors
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from models import Prediction
from utils.training.graphs import own_gradients, replay_training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("graphs") / "data")


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

    monkeypatch.setattr(train_gs, "set_up_graphs", set_up)
    return replays


OPTIONS = [
    (),
    ("--accumulate", 2),
    ("--accumulate", 4, "--grad-clip", 0.5),
    ("--batch-size", 3),  # the last batch is smaller
    ("--batch-size", 3, "--accumulate", 2),
    ("--grad-clip", 0.5, "--ema", 0.9),
    ("--loss", "dm-count", "--weight-decay", 0.1),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options)))
def test_a_replayed_run_learns_the_same_bits(data, tmp_path, graphs, options):
    """With dropout, which draws other masks in each replay."""
    fixed = "--epochs", 2, "--lr", 1e-3, *options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        train(data, tmp_path / "replayed", *fixed)
        size = 3 if "--batch-size" in options else 1
        assert set(graphs) == {(size, 3, 64, 64)} and len(graphs) == (2 if size == 3 else 8)
        patch.setattr(train_gs, "set_up_graphs", lambda *_: None)
        train(data, tmp_path / "launched", *fixed)
        train(data, tmp_path / "resumed", *fixed, "--epochs", 1)
    assert largest_difference(weights(tmp_path / "replayed"), weights(tmp_path / "launched")) == 0
    assert metrics(tmp_path / "replayed")[-1]["val_mae"] == metrics(tmp_path / "launched")[-1]["val_mae"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        graphs.clear()
        train(data, tmp_path / "resumed", *fixed)
    assert graphs and largest_difference(weights(tmp_path / "resumed"), weights(tmp_path / "launched")) == 0


def test_what_is_not_finite_is_kept_away_as_without(data, tmp_path, graphs, monkeypatch):
    class Broken(Tiny):
        def forward(self, images):
            density, attention = super().forward(images)
            return Prediction(density * float("nan") if len(graphs) == 2 else density, attention)

    monkeypatch.setattr(train_gs, "build_model", Broken)
    _, err = train(data, tmp_path, "--epochs", 1, code=1)
    assert len(errors(err)) == 1 and "epoch 0, batch 2: the loss of" in err
    state = torch.load(tmp_path / "trouble" / "last_good_ckpt.tar", weights_only=True)
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())


def test_other_shapes_and_evaluation_go_through_the_network(replays):
    network = Tiny()
    assert replay_training(network, torch.zeros(2, 3, 32, 32), "32") is None and network.training
    for images, replayed in (
        (torch.rand(2, 3, 32, 32), True),
        (torch.rand(1, 3, 32, 32), False),
        (torch.rand(2, 3, 48, 32), False),
    ):
        replays.clear()
        assert network(images).density.shape == (len(images), 1, images.shape[2] // 8, 4) and bool(replays) == replayed
    replays.clear()
    assert network.eval()(torch.rand(2, 3, 32, 32)).density.shape == (2, 1, 4, 4) and not replays
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_capture_that_fails_changes_nothing(monkeypatch):
    def fails(network, sample):
        network.forward = None
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing. Try\nsomething else")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    network = Tiny().eval()
    before = network.forward
    assert replay_training(network, torch.zeros(1, 3, 32, 32), "bf16-mixed") == (
        "CUDA error: operation not permitted when stream is capturing"
    )
    assert network.forward == before and not network.training


def test_graphs_on_a_cpu_are_one_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    _, err = train(data, tmp_path / "asked", "--epochs", 1, "--graphs")
    assert err.count("--graphs: needs a GPU; each operation is launched by itself") == 1
    _, err = train(data, tmp_path / "not", "--epochs", 1)
    assert "--graphs" not in err
