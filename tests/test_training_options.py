"""Every option of ``train_gs.py`` does something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from commands import ROOT, call, errors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from losses import LOSSES
from models import MODELS
from utils.train_options import parse_train_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("options") / "data")
    call("GS2D/build_kernels.py", "--root-path", root, "--workers", 1)
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)


# What changes the weights after two epochs of four steps each.
LEARNING = {
    "--lr": 1e-3,
    "--head-lr": 1e-3,
    "--lr-schedule": "cosine",
    "--weight-decay": 0.1,
    "--batch-size": 2,
    "--accumulate": 2,
    "--grad-clip": 1e-3,
    "--epochs": 3,
    "--seed": 1,
    "--crop-size": 48,
    "--warm-up-epochs": 1,
    "--loss": "mse",
    "--kernels": "h5",
    "--cut-off": 1,
    "--background-ratio": 0.5,
    "--scale-ratio": 4,
    "--post-min": 2,
    "--post-max": 9,
    "--precision": "bf16-mixed",
}
# Where the others are shown to work: here, or in the tests of pipeline, training and trouble.
ELSEWHERE = {
    "--ema",
    "--compile",
    "--sigma",
    "--deterministic",
    "--channels-last",
    "--val-start",
    "--val-every",
    "--window",
    "--max-model-num",
    "--save-dir",
    "--data-dir",
    "--num-workers",
    "--skip-bad-samples",
    "--resume",
    "--device",
    "--num-nodes",
    "--dataset",
    "--model-name",
    "--backbone-weights",
    "--topk",
    "--usenum",
    "--downsample-ratio",
    "--config",
}


def test_no_option_is_forgotten_and_the_help_fits_two_screens(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_train_options(("vgg",), ("gst", "mse"), ["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    options = {word.rstrip(",") for line in lines for word in line.split() if word.startswith("--")}
    options = {option for option in options if not option.startswith("--no-")} - {"--help"}
    assert options == set(LEARNING) | ELSEWHERE
    assert all("default" in line for line in " ".join(text.split()).split(" --")[2:] if "(default" in line)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        train(data, folder, "--epochs", 2, "--lr", 1e-4)
    return weights(folder)


@pytest.mark.parametrize("option", LEARNING)
def test_an_option_of_learning_changes_the_weights(data, tmp_path, plain, option):
    settings = {"--epochs": 2, "--lr": 1e-4, option: LEARNING[option]}
    train(data, tmp_path, *[text for pair in settings.items() for text in pair])
    changed = weights(tmp_path)
    assert largest_difference(plain, changed) > 1e-7
    config = yaml.safe_load((tmp_path / "config.yml").read_text())
    assert config[option[2:].replace("-", "_")] == LEARNING[option]


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
def test_the_other_losses_need_no_gaussians(data, tmp_path, plain, loss):
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("gs_params", "kernels"))
    train(copy, tmp_path / "run", "--epochs", 2, "--lr", 1e-4, "--loss", loss)
    assert largest_difference(plain, weights(tmp_path / "run")) > 1e-6
    _, err = train(copy, tmp_path / "gst", "--epochs", 1, code=1)
    assert "gs_params" in err
    _, err = train(copy, tmp_path / "gst", "--epochs", 1, "--loss", loss, "--kernels", "h5", code=2)
    assert "only gst has transport kernels" in err


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


def test_a_compiled_network_learns_the_same(data, tmp_path, plain):
    train(data, tmp_path, "--epochs", 2, "--lr", 1e-4, "--compile", "--seed", 4073)
    compiled = weights(tmp_path)
    assert set(compiled) == set(plain)  # the names of the plain network
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["val_mae"] > 0


def test_validation_and_files_follow_their_options(data, tmp_path):
    out, _ = train(data, tmp_path, "--epochs", 6, "--val-start", 1, "--val-every", 3, "--max-model-num", 2)
    assert [("val_mae" in line) for line in metrics(tmp_path)] == [False, True, False, False, True, True]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["4_ckpt.tar", "5_ckpt.tar"]
    assert out.count("val MAE") == 3
    content = torch.load(tmp_path / "5_ckpt.tar", weights_only=True)
    assert content["step"] == 24 and content["config"]["val_every"] == 3 and content["best"] < 1e9
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
    for dataset, crop in {"qnrf": 512, "jhu": 512, "shb": 512, "nwpu": 384, "sha": 256}.items():
        arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), ["--data-dir", "x", "--dataset", dataset])
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
        "MASTER_PORT": "29741",
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
        (["--crop-size", 100], "--crop-size 100: must be a multiple of 16"),
        (["--downsample-ratio", 4], "invalid choice"),
        (["--sigma", "wide"], "--sigma: 'wide' is no number"),
        (["--lr-schedule", "step"], "invalid choice: 'step'"),
    ],
)
def test_impossible_values_are_refused(data, tmp_path, options, part):
    _, err = train(data, tmp_path, *options, code=2)
    assert len(errors(err)) == 1 and part in err
