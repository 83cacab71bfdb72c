"""The released training script's flags mean here what they mean there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from training_runs import Tiny, make_data, train

import train_gs
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.config import option_values
from utils.training.run_folder import NEUTRAL_OPTIONS
from utils.training.train_options import parse_train_options

# The released script's flags with their defaults, and what each is called here; data and save folder as an example.
RELEASED = {
    "--model-name vgg_trans": ("model_name", "vgg_trans"),
    "--data-dir data/UCF-Train-Val-Test": ("data_dir", Path("data/UCF-Train-Val-Test")),
    "--save-dir checkpoints": ("save_dir", Path("checkpoints")),
    "--dataset qnrf": ("dataset", "qnrf"),
    "--save-all False": ("save_all", False),
    "--lr 5e-6": ("lr", 5e-6),
    "--weight-decay 1e-5": ("weight_decay", 1e-5),
    "--resume ''": ("resume", "auto"),
    "--max-model-num 1": ("max_model_num", 1),
    "--max-epoch 1200": ("epochs", 1200),
    "--val-epoch 5": ("val_every", 5),
    "--val-start 600": ("val_start", 600),
    "--topk 0.3": ("topk", 0.3),
    "--usenum 18": ("usenum", 18),
    "--batch-size 1": ("batch_size", 1),
    "--device ' 2'": ("device", "2"),
    "--num-workers 8": ("num_workers", 8),
    "--is-gray False": None,
    "--crop-size 512": ("crop_size", 512),
    "--downsample-ratio 8": ("downsample_ratio", 8),
    "--use-background True": ("background_ratio", 0.015),
    "--sigma 8.0": ("sigma", 8.0),
    "--background-ratio 0.015": ("background_ratio", 0.015),
    "--post-min 1.0": ("post_min", 1.0),
    "--post-max 20.0": ("post_max", 20.0),
    "--scale-ratio 1.0": ("scale_ratio", 1.0),
    "--cut-off 3.0": ("cut_off", 3.0),
    "--seed 4073": ("seed", 4073),
    "--gs-path gs_params": None,
}


def parse(*words):
    return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, words)


def test_a_command_line_of_the_released_script_is_taken_whole():
    arguments = vars(parse(*shlex.split(" ".join(RELEASED))))
    for flag, meaning in RELEASED.items():
        if meaning:
            assert arguments[meaning[0]] == meaning[1], flag
    assert not {"gs_path", "use_background", "is_gray", "max_epoch", "val_epoch"} & arguments.keys()


def test_the_released_defaults_are_the_defaults_but_for_what_is_named_here():
    ours, theirs = vars(parse("--data-dir", "x")), vars(parse(*shlex.split(" ".join(RELEASED))))
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {
        "model_name",
        "data_dir",
        "save_dir",
        "device",
        "num_workers",
        "sigma",
    }  # sigma: of --loss mse alone


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--use-background False", "background_ratio", 0.0),
        ("--use-background", "background_ratio", 0.015),
        ("--use-background no --background-ratio 0.1", "background_ratio", 0.0),
        ("--save-all", "save_all", True),
        ("--save-all true", "save_all", True),
        ("--save-all 0", "save_all", False),
        ("--is-gray True", "background_ratio", 0.015),
        ("--max-epoch 7", "epochs", 7),
        ("--val-epoch 3", "val_every", 3),
    ],
)
def test_values(words, name, value):
    assert getattr(parse("--data-dir", "x", *words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--save-all perhaps", "'perhaps' is neither True nor False"),
        ("--gs-path fitted", "--gs-path fitted: fitted Gaussians are read from gs_params/ beside the images"),
    ],
)
def test_what_cannot_be_meant(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--data-dir", "x", *words.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_options_of_a_run_are_those_of_a_file(tmp_path):
    """What config.yml holds is taken again, a switch with a value included."""
    config = tmp_path / "config.yml"
    options = option_values(parse("--data-dir", "x", "--save-all", "--use-background", "False"))
    config.write_text(yaml.safe_dump(options))
    assert option_values(parse("--config", str(config))) == options
    assert "save_all" in NEUTRAL_OPTIONS


def test_every_best_model_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    options = "--max-epoch", 3, "--val-start", 0, "--val-epoch", 1, "--lr", 1e-2, "--save-all", "True"
    train(make_data(tmp_path / "data"), tmp_path / "run", *options)
    kept = sorted((tmp_path / "run").glob("best_model_*.pth"), key=lambda path: int(path.stem.rpartition("_")[2]))
    assert kept and kept[0].name == "best_model_0.pth"
    assert kept[-1].read_bytes() == (tmp_path / "run" / "best_model.pth").read_bytes()
