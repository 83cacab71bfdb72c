"""Every option of ``train_gs.py`` does something, and the released script's flags mean here what they mean there."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import errors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Tiny, checkpoint, largest_difference, metrics, train, weights

from datasets.crowd import Crowd
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.config import option_values
from utils.evaluation import evaluate
from utils.training.train_options import parse_train_options

pytestmark = pytest.mark.usefixtures("tiny")


def parse(*words):
    return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, words)


def test_the_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    entries = re.split(r"\n  (?=-)", capsys.readouterr().out)[1:]
    shown = {entry.split()[0].rstrip(","): " ".join(entry.split()) for entry in entries}
    numbers = {name: value for name, value in vars(parse("--data-dir", "d")).items() if type(value) in (int, float)}
    assert len(numbers) > 20
    for name, value in numbers.items():
        assert f"(default: {value})" in shown[f"--{name.replace('_', '-')}"], name


RATE = 1e-4
COSINE = [[RATE * (1 + math.cos(math.pi * i / 8)) / 2] for i in range(8)]
WARM_UP = [0, RATE / 4, RATE / 2, 3 * RATE / 4]
# An option, and what it does in two epochs of four images.
EFFECTS = {
    ("--lr", 1e-3): lambda s: s.rates == [[1e-3]] * 8,
    ("--lr-schedule", "cosine"): lambda s: np.allclose(s.rates, COSINE, rtol=1e-6),
    ("--warm-up-epochs", 1): lambda s: sum(s.rates, []) == pytest.approx([*WARM_UP, *[RATE] * 4]),
    ("--weight-decay", 0.1): lambda s: s.decays == [0.1] * 8,
    ("--batch-size", 2): lambda s: s.shapes == [(2, 3, 64, 64)] * 4 and len(s.rates) == 4,
    ("--accumulate", 2): lambda s: s.shapes == [(1, 3, 64, 64)] * 8 and len(s.rates) == 4,
    ("--grad-clip", 1e-3): lambda s: s.norms == pytest.approx([1e-3] * 8, rel=1e-3),
    ("--epochs", 3): lambda s: s.rates == [[RATE]] * 12,
    ("--crop-size", 48): lambda s: s.shapes == [(1, 3, 48, 48)] * 8,
    ("--head-lr", 1e-2): lambda s: s.rates == [[RATE, 1e-2]] * 8,
}


@pytest.mark.parametrize(("option", "value"), EFFECTS)
def test_an_option_of_learning_does_what_it_says(data, tmp_path, steps, option, value):
    train(data, tmp_path, "--epochs", 2, "--lr", RATE, option, value)
    assert EFFECTS[option, value](steps), vars(steps)
    config = yaml.safe_load((tmp_path / "config.yml").read_text())
    assert config[option[2:].replace("-", "_")] == value


def test_the_rate_of_the_head_keeps_its_ratio_also_after_an_interruption(data, tmp_path, steps):
    for epochs in (1, 3):
        train(data, tmp_path, "--head-lr", 1e-2, "--lr", 1e-4, "--lr-schedule", "cosine", "--epochs", epochs)
    groups = checkpoint(tmp_path)["optimizer_state_dict"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [2, 2] and len(steps.rates) == 12
    assert all(head == pytest.approx(100 * features) for features, head in steps.rates)


def losses_of(data, folder, options, *fixed):
    """The mean loss of an epoch in which the weights stay as they are, with each of the ``options``."""
    found = []
    for number, option in enumerate(options):
        train(data, folder / str(number), "--epochs", 1, "--lr", 1e-12, *fixed, *option)
        found.append(metrics(folder / str(number))[0]["loss"])
    return found


def test_the_seed_draws_the_first_weights(data, tmp_path):
    losses_of(data, tmp_path, [("--seed", 1), ("--seed", 1), ("--seed", 2)])
    one, again, other = (weights(tmp_path / number) for number in "012")
    assert largest_difference(one, again) == 0 and largest_difference(one, other) > 1e-2


def test_options_of_crop_and_kernel_change_the_loss(data, tmp_path):
    kernel = {"--scale-ratio": 0.5, "--post-min": 2, "--post-max": 9, "--cut-off": 1, "--background-ratio": 0.5}
    others = ("--whole-targets", 0.5), ("--jitter", 0.5), ("--round-shapes",)
    others += ("--background-weight", 0.5), ("--count-weight", 0.5)
    options = [(), *kernel.items(), *others]
    assert len({round(loss, 4) for loss in losses_of(data, tmp_path / "gst", options)}) == len(options)
    losses = losses_of(data, tmp_path, [("--sigma", sigma) for sigma in (15, 4, "adaptive")], "--loss", "mse")
    assert len({round(loss, 6) for loss in losses}) == 3


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "gst"])
def test_the_other_losses_are_minimized_and_need_no_gaussians(data, tmp_path, loss):
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("gs_params"))
    train(copy, tmp_path / "run", "--epochs", 10, "--lr", 6e-3, "--loss", loss)
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_a_compiled_network_learns_the_same(data, tmp_path, monkeypatch):
    """Traced by the compiler, and run without its C++, which would take ten seconds and is PyTorch's to test."""
    traced = []
    train(data, tmp_path / "plain", "--epochs", 2, "--lr", RATE)
    compiler = functools.partial(torch.compile, backend=lambda graph, _: traced.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", compiler)
    train(data, tmp_path / "compiled", "--epochs", 2, "--lr", RATE, "--compile")
    plain, compiled = (weights(tmp_path / name) for name in ("plain", "compiled"))
    assert traced and set(compiled) == set(plain)  # the names of the plain network
    assert largest_difference(compiled, plain) < 1e-6


def test_validation_and_files_follow_their_options(data, tmp_path):
    options = "--epochs", 6, "--val-start", 1, "--val-every", 3, "--checkpoint-minutes", 0, "--max-model-num"
    out, _ = train(data, tmp_path, *options, 2)
    assert [("val_mae" in line) for line in metrics(tmp_path)] == [False, True, False, False, True, True]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["4_ckpt.tar", "5_ckpt.tar"]
    assert out.count("val MAE") == 3
    content = torch.load(tmp_path / "5_ckpt.tar", weights_only=True)
    assert content["step"] == 24 and content["config"]["val_every"] == 3 and content["epochs"] == 6
    # A finished run keeps as many as are asked for now: a kill between two files leaves one too many.
    out, _ = train(data, tmp_path, *options, 1)
    assert "nothing to do" in out and [path.name for path in tmp_path.glob("*.tar")] == ["5_ckpt.tar"]


@pytest.mark.parametrize("options", [[], ["--ema", 0.5], ["--skip-bad-samples"]])
def test_calibrated_densities_sum_up_to_the_people_of_the_training_photographs(data, tmp_path, monkeypatch, options):
    """At the start of training, and those of the best model; the training goes on with its own, and leaves given weights."""
    folders = tmp_path / "plain", tmp_path / "calibrated"
    common = "--epochs", 2, "--lr", 1e-3, "--val-start", 1, *options
    if "--skip-bad-samples" in options:
        data = shutil.copytree(data, tmp_path / "data")
        (data / "train" / "IMG_0002.jpg").write_bytes(b"")
    train(data, tmp_path / "start", "--epochs", 1, "--lr", 1e-12, "--calibrate", *options)
    assert metrics(tmp_path / "start")[0]["calibration"] == pytest.approx(1, abs=1e-5)
    common += "--resume", tmp_path / "start" / "best_model.pth"
    train(data, folders[0], *common)
    train(data, folders[1], *common, "--calibrate")
    plain, found = (metrics(folder)[-1] for folder in folders)
    assert found["loss"] == plain["loss"] and abs(found["calibration"] - 1) > 0.01 and "calibration" not in plain
    assert largest_difference(*map(weights, folders)) == 0
    network = Tiny().eval()
    network.load_state_dict(torch.load(folders[1] / "best_model.pth", weights_only=True))
    samples = Crowd(data, 64, "train", training=False, skip_bad=True)
    samples = [samples[index] for index in range(len(samples))]
    results = evaluate(network, samples, "cpu")
    assert sum(r.predicted for r in results) == pytest.approx(sum(r.truth for r in results), rel=1e-5)


def test_the_board_shows_figures_and_every_best_model_is_kept(data, tmp_path):
    options = "--max-epoch", 3, "--val-start", 0, "--val-epoch", 1, "--lr", 1e-2, "--save-all", "True"
    train(data, tmp_path, *options)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()
    parts = {f"time/{part}" for part in ("data", "forward", "loss", "backward", "other")}
    figures = {f"train/{name}" for name in ("loss", "mae", "mse", "lr", "gradient_norm", "images_per_second")}
    assert parts | figures | {"val/mae", "val/mse"} <= set(tags["scalars"])
    for line, event in zip(metrics(tmp_path), board.Scalars("val/mae"), strict=True):
        assert (event.step, event.value) == (line["epoch"], pytest.approx(line["val_mae"]))
        assert sum(line["time"].values()) == pytest.approx(line["seconds"])
    packages = json.loads((tmp_path / "environment.json").read_text())["packages"]
    assert packages["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    best = sorted(tmp_path.glob("best_model_*.pth"), key=lambda path: int(path.stem.rpartition("_")[2]))
    assert best[0].name == "best_model_0.pth"
    assert best[-1].read_bytes() == (tmp_path / "best_model.pth").read_bytes()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--ema 1", "--ema: 1 is impossible"),
        ("--sigma wide", "--sigma: 'wide' is no number"),
        ("--downsample-ratio 4", "invalid choice"),
        ("--minutes inf", "--minutes: inf is impossible: it must be above 0 and at most 1e+06"),
        ("--save-all perhaps", "'perhaps' is neither True nor False"),
        ("--gs-path fitted", "--gs-path fitted: fitted Gaussians are read from gs_params/ beside the images"),
    ],
)
def test_impossible_values_are_refused(data, tmp_path, options, part):
    _, err = train(data, tmp_path, *options.split(), code=2)
    assert len(errors(err)) == 1 and part in err


# The released script's flags with their defaults, but for the network, the device and the two folders.
RELEASED = """
    --model-name vgg_trans --data-dir data/UCF-Train-Val-Test --save-dir checkpoints --dataset qnrf --save-all False
    --lr 5e-6 --weight-decay 1e-5 --resume '' --max-model-num 1 --max-epoch 1200 --val-epoch 5 --val-start 600 --topk 0.3
    --usenum 18 --batch-size 1 --device ' 2' --num-workers 8 --is-gray False --crop-size 512 --downsample-ratio 8
    --use-background True --sigma 8.0 --background-ratio 0.015 --post-min 1.0 --post-max 20.0 --scale-ratio 1.0
    --cut-off 3.0 --seed 4073 --gs-path gs_params
"""


def test_a_command_line_of_the_released_script_is_taken_whole_and_its_defaults_are_ours():
    theirs, ours = vars(parse(*shlex.split(RELEASED))), vars(parse("--data-dir", "x", "--num-workers", "8"))
    assert not {"gs_path", "use_background", "is_gray", "max_epoch", "val_epoch"} & theirs.keys()
    folders = {"data_dir": Path("data/UCF-Train-Val-Test"), "save_dir": Path("checkpoints")}
    differ = {key: theirs[key] for key in ours if ours[key] != theirs[key]}
    assert differ == {"model_name": "vgg_trans", "device": "2", "sigma": 8.0, **folders}  # sigma: of --loss mse alone


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--use-background no --background-ratio 0.1", "background_ratio", 0.0),
        ("--use-background", "background_ratio", 0.015),
        ("--save-all", "save_all", True),
        ("--save-all 0", "save_all", False),
    ],
)
def test_a_released_flag_as_people_write_it(tmp_path, words, name, value):
    """What config.yml holds of it is taken again, a switch with a value included."""
    arguments = parse("--data-dir", "x", *words.split())
    assert getattr(arguments, name) == value
    (tmp_path / "config.yml").write_text(yaml.safe_dump(option_values(arguments)))
    assert option_values(parse("--config", str(tmp_path / "config.yml"))) == option_values(arguments)
