"""Every option of ``train_gs.py`` does something."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, call, errors, free_port
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from GS2D.gaussians import Gaussians2D
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.training.train_options import parse_train_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("options") / "data")
    call("GS2D/build_kernels.py", "--root-path", root, "--workers", 1)
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)


def test_the_help_fits_two_screens_and_shows_every_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_train_options(("vgg",), ("gst", "mse"), KERNEL_OPTIONS, ["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 100 and max(map(len, text.splitlines())) <= 100
    entries = re.split(r"\n  (?=-)", text)[1:]
    shown = {entry.split()[0].rstrip(","): " ".join(entry.split()) for entry in entries}
    values = vars(parse_train_options(("vgg",), ("gst", "mse"), KERNEL_OPTIONS, ["--data-dir", "d"]))
    numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
    assert len(numbers) > 20
    for name, value in numbers.items():
        assert f"(default: {value})" in shown[f"--{name.replace('_', '-')}"], name


class Steps:
    """What the optimizer and the network saw: rate, weight decay and gradient norm of each step, shapes of the batches."""

    def __init__(self, monkeypatch):
        self.rates, self.decays, self.norms, self.shapes, self.start = [], [], [], [], None
        step, forward = torch.optim.Adam.step, Tiny.forward

        def recorded(optimizer, *args, **kwargs):
            (group,) = optimizer.param_groups
            self.rates.append(group["lr"])
            self.decays.append(group["weight_decay"])
            self.norms.append(float(torch.stack([p.grad.norm() for p in group["params"]]).norm()))
            return step(optimizer, *args, **kwargs)

        def seen(network, images):
            if network.training:
                self.shapes.append(tuple(images.shape))
                if self.start is None:
                    self.start = network.layers[0].weight.detach().clone()
            return forward(network, images)

        monkeypatch.setattr(torch.optim.Adam, "step", recorded)
        monkeypatch.setattr(Tiny, "forward", seen)


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


RATE = 1e-4
# An option, and what it does in two epochs of four images.
EFFECTS = {
    ("--lr", 1e-3): lambda s: s.rates == [1e-3] * 8,
    ("--lr-schedule", "cosine"): lambda s: s.rates == pytest.approx(COSINE),
    ("--warm-up-epochs", 1): lambda s: s.rates[4:] == [RATE] * 4 and s.rates[:4] == pytest.approx(WARM_UP),
    ("--weight-decay", 0.1): lambda s: s.decays == [0.1] * 8,
    ("--batch-size", 2): lambda s: s.shapes == [(2, 3, 64, 64)] * 4 and len(s.rates) == 4,
    ("--accumulate", 2): lambda s: s.shapes == [(1, 3, 64, 64)] * 8 and len(s.rates) == 4,
    ("--grad-clip", 1e-3): lambda s: s.norms == pytest.approx([1e-3] * 8, rel=1e-3),
    ("--epochs", 3): lambda s: s.rates == [RATE] * 12,
    ("--crop-size", 48): lambda s: s.shapes == [(1, 3, 48, 48)] * 8,
}
COSINE = [RATE * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
WARM_UP = [0, RATE / 4, RATE / 2, 3 * RATE / 4]


@pytest.mark.parametrize(("option", "value"), EFFECTS)
def test_an_option_of_learning_does_what_it_says(data, tmp_path, steps, option, value):
    train(data, tmp_path, "--epochs", 2, "--lr", RATE, option, value)
    assert EFFECTS[option, value](steps), vars(steps)
    config = yaml.safe_load((tmp_path / "config.yml").read_text())
    assert config[option[2:].replace("-", "_")] == value


def test_the_seed_draws_the_first_weights(data, tmp_path, monkeypatch):
    starts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with monkeypatch.context() as patch:
            starts.append((steps := Steps(patch)).start)
            train(data, tmp_path / name, "--epochs", 1, "--seed", seed)
            starts[-1] = steps.start
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    one, again = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[key], again[key]) for key in one)


def first_loss(data, folder, *options):
    """The mean loss of an epoch in which the weights stay as they are."""
    train(data, folder, "--epochs", 1, "--lr", 1e-12, *options)
    return metrics(folder)[0]["loss"]


def with_scales(data, folder, change):
    """A copy of the data whose fitted scales are ``change``d."""
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("kernels"))
    for path in (folder / "train" / "gs_params").glob("*.h5"):
        gaussians = Gaussians2D.load(path)
        Gaussians2D(gaussians.means, change(gaussians.scales), gaussians.rotations, gaussians.colors).save(path)
    return folder


def test_the_scale_ratio_is_a_factor_on_the_fitted_scales(data, tmp_path):
    doubled = with_scales(data, tmp_path / "data", lambda scales: 2 * scales)
    free = ["--post-min", 100, "--post-max", 100]
    expected = first_loss(doubled, tmp_path / "expected", *free)
    assert first_loss(data, tmp_path / "found", *free, "--scale-ratio", 2) == pytest.approx(expected, rel=1e-6)
    assert first_loss(data, tmp_path / "plain", *free) != pytest.approx(expected, rel=1e-3)


def test_scales_lie_between_8_by_post_min_and_post_max(data, tmp_path):
    """Where both are 4 pixels, the fitted scales no longer matter."""
    doubled = with_scales(data, tmp_path / "data", lambda scales: 2 * scales)
    pinned = ["--post-min", 2, "--post-max", 4]
    expected = first_loss(doubled, tmp_path / "doubled", *pinned)
    assert first_loss(data, tmp_path / "found", *pinned) == pytest.approx(expected, rel=1e-6)
    for name, value in (("--post-min", 2.5), ("--post-max", 5)):
        loss = first_loss(data, tmp_path / name, *pinned, name, value)
        assert loss != pytest.approx(expected, rel=1e-5), name


def test_the_background_takes_over_where_it_is_told_to(data, tmp_path):
    """Without a weight it takes nothing, whatever the cut-off."""
    loss = {}
    for cut_off, ratio in ((3, 0.015), (1, 0.015), (3, 0.5), (3, 0), (1, 0)):
        options = "--cut-off", cut_off, "--background-ratio", ratio
        loss[cut_off, ratio] = first_loss(data, tmp_path / f"{cut_off} {ratio}", *options)
    assert loss.pop((3, 0)) == loss[1, 0]
    assert len({round(value, 4) for value in loss.values()}) == 4


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        train(data, folder, "--epochs", 2, "--lr", RATE)
    return weights(folder)


def test_the_layers_behind_the_features_have_a_rate_of_their_own_also_after_an_interruption(data, tmp_path):
    options = "--lr", 1e-4, "--head-lr", 1e-2, "--lr-schedule", "cosine", "--ema", 0.5
    train(data, tmp_path / "whole", *options, "--epochs", 2)
    # The schedule follows from --epochs: the second half must not know that the run was cut short.
    rates, step = [], torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        train(data, tmp_path / "parts", *options, "--epochs", 4)
    assert len(rates) == 16 and rates[0] == [1e-4, 1e-2]
    assert all(head == pytest.approx(100 * features) for features, head in rates)
    (checkpoint,) = (tmp_path / "whole").glob("*_ckpt.tar")
    groups = torch.load(checkpoint, weights_only=True)["optimizer_state_dict"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [2, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        rates.clear()
        train(data, tmp_path / "whole", *options, "--epochs", 4)
    assert len(rates) == 8 and all(head == pytest.approx(100 * features) for features, head in rates)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "gst"])
def test_the_other_losses_are_minimized_and_need_no_gaussians(data, tmp_path, loss):
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("gs_params", "kernels"))
    train(copy, tmp_path / "run", "--epochs", 20, "--lr", 3e-3, "--loss", loss)
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    _, err = train(copy, tmp_path / "gst", "--epochs", 1, code=1)
    assert "gs_params" in err
    _, err = train(copy, tmp_path / "gst", "--epochs", 1, "--loss", loss, "--kernels", "h5", code=2)
    assert f"--kernels h5: only gst's kernels are stored, not those of --loss {loss}; leave it out" in err


def test_the_width_of_the_gaussians_of_direct_regression(data, tmp_path):
    for sigma in (15, 4, "adaptive"):
        train(data, tmp_path / str(sigma), "--epochs", 1, "--lr", 1e-4, "--loss", "mse", "--sigma", sigma)
    runs = [weights(tmp_path / str(sigma)) for sigma in (15, 4, "adaptive")]
    assert all(largest_difference(runs[i], runs[j]) > 1e-7 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_averaged_weights_are_validated_and_resumed(data, tmp_path):
    """After each of the steps: average = 0.9 average + 0.1 weights, from the weights after the first step on."""
    train(data, tmp_path / "whole", "--epochs", 2, "--lr", 1e-3, "--ema", 0.9)
    train(data, tmp_path / "part", "--epochs", 1, "--lr", 1e-3, "--ema", 0.9)
    train(data, tmp_path / "part", "--epochs", 2, "--lr", 1e-3, "--ema", 0.9)
    whole, part = (torch.load(tmp_path / name / "1_ckpt.tar", weights_only=True) for name in ("whole", "part"))
    assert all(torch.equal(whole["average"][key], part["average"][key]) for key in whole["average"])
    assert whole["average"]["n_averaged"] == 8
    best = torch.load(tmp_path / "whole" / "best_model.pth", weights_only=True)
    assert all(torch.equal(best[key], whole["average"][f"module.{key}"]) for key in best)
    assert largest_difference(best, whole["model_state_dict"]) > 1e-5


def test_the_average_is_exponential(data, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        seen.append([p.detach().clone() for group in self.param_groups for p in group["params"]])
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    train(data, tmp_path, "--epochs", 1, "--lr", 1e-2, "--ema", 0.75)
    average = seen[0]
    for current in seen[1:]:
        average = [0.75 * old + 0.25 * new for old, new in zip(average, current)]
    best = torch.load(tmp_path / "best_model.pth", weights_only=True)
    for expected, value in zip(average, best.values(), strict=True):
        torch.testing.assert_close(value, expected)


def test_memory_layout_workers_and_windows_do_not_change_what_is_learned(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "dropout", 0)  # whose mask follows the memory's order
    train(data, tmp_path / "plain", "--epochs", 2, "--lr", 1e-4)
    options = ["--epochs", 2, "--lr", 1e-4, "--channels-last", "--num-workers", 2, "--window", 48, "--deterministic"]
    try:
        train(data, tmp_path / "other", *options)
    finally:
        torch.use_deterministic_algorithms(False)
    plain, other = (weights(tmp_path / name) for name in ("plain", "other"))
    assert largest_difference(plain, other) < 1e-6
    layouts = [other[key].is_contiguous(memory_format=torch.channels_last) for key in other if other[key].ndim == 4]
    assert layouts == [True, True]


def test_a_compiled_network_learns_the_same(data, tmp_path, plain, monkeypatch):
    """Traced by the compiler, and run without its C++, which would take ten seconds and is PyTorch's to test."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    train(data, tmp_path, "--epochs", 2, "--lr", RATE, "--compile")
    compiled = weights(tmp_path)
    assert traced and set(compiled) == set(plain)  # the names of the plain network
    assert largest_difference(compiled, plain) < 1e-6


def test_validation_and_files_follow_their_options(data, tmp_path):
    out, _ = train(
        data,
        tmp_path,
        "--epochs",
        6,
        "--val-start",
        1,
        "--val-every",
        3,
        "--max-model-num",
        2,
        "--checkpoint-minutes",
        0,
    )
    assert [("val_mae" in line) for line in metrics(tmp_path)] == [False, True, False, False, True, True]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["4_ckpt.tar", "5_ckpt.tar"]
    assert out.count("val MAE") == 3
    content = torch.load(tmp_path / "5_ckpt.tar", weights_only=True)
    assert content["step"] == 24 and content["config"]["val_every"] == 3 and content["epochs"] == 6
    # A finished run keeps as many as are asked for now: a kill between two files leaves one too many.
    out, _ = train(data, tmp_path, "--epochs", 6, "--val-start", 1, "--val-every", 3, "--max-model-num", 1)
    assert "nothing to do" in out and [path.name for path in tmp_path.glob("*.tar")] == ["5_ckpt.tar"]


def test_the_board_shows_figures_and_densities(data, tmp_path):
    train(data, tmp_path, "--epochs", 2, "--val-start", 0, "--val-every", 1)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()
    parts = {f"time/{part}" for part in ("data", "forward", "loss", "backward", "other")}
    figures = {f"train/{name}" for name in ("loss", "mae", "mse", "lr", "gradient_norm", "images_per_second")}
    assert parts | figures | {"val/mae", "val/mse"} <= set(tags["scalars"])
    for line in metrics(tmp_path):
        (event,) = (event for event in board.Scalars("val/mae") if event.step == line["epoch"])
        assert event.value == pytest.approx(line["val_mae"])
        assert sum(line["time"].values()) == pytest.approx(line["seconds"])
    assert tags["images"] == ["density/IMG_0000"] and len(board.Images("density/IMG_0000")) == 1
    versions = json.loads((tmp_path / "environment.json").read_text())
    assert (
        versions["packages"]["torch"] == torch.__version__.partition("+")[0]
        or versions["packages"]["torch"] == torch.__version__
    )


def test_the_preset_gives_the_crop_and_the_run_its_folder(monkeypatch):
    for dataset, crop in {"qnrf": 512, "jhu": 512, "shb": 512, "nwpu": 384, "sha": 256, "ucf50": 512}.items():
        arguments = parse_train_options(
            tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, ["--data-dir", "x", "--dataset", dataset]
        )
        assert arguments.crop_size == crop and str(arguments.save_dir) == f"runs/{dataset}_vgg"


def test_two_machines_are_two_processes(data, tmp_path):
    """--num-nodes, with both machines played by this one."""
    options = ["--data-dir", data, "--device", "cpu", "--backbone-weights", "none", "--crop-size", 64, "--epochs", 1]
    command = [
        sys.executable,
        "tests/train_tiny.py",
        *options,
        "--num-workers",
        0,
        "--num-nodes",
        2,
        "--save-dir",
        tmp_path,
    ]
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    world |= {"LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    runs = [
        subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **world, "RANK": str(rank), "NODE_RANK": str(rank), "GROUP_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert "2 x cpu" in outputs[0][0] and "2 x cpu" not in outputs[1][0]
    assert len(metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--ema", 1], "--ema: 1 is impossible"),
        (["--cut-off", "1e200"], "--cut-off: 1e200 is impossible"),
        (["--post-max", "1e39"], "--post-max: 1e39 is impossible"),
        (["--loss", "mse", "--sigma", "1e39"], "--sigma: 1e39 is impossible"),
        (["--crop-size", 100], "--crop-size 100: must be a multiple of 16"),
        (["--downsample-ratio", 4], "invalid choice"),
        (["--sigma", "wide"], "--sigma: 'wide' is no number"),
        (["--lr-schedule", "step"], "invalid choice: 'step'"),
    ],
)
def test_impossible_values_are_refused(data, tmp_path, options, part):
    _, err = train(data, tmp_path, *options, code=2)
    assert len(errors(err)) == 1 and part in err
