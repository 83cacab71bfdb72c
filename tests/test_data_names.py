"""The folder of a prepared data set is --data-dir and --root-path in every script, and either key in a configuration file."""

from __future__ import annotations

import pytest
import torch
from commands import call, errors
from training_runs import Tiny, make_data

import models
from utils.training.run_folder import save_weights

TRAIN = ("--max-epoch", 1, "--crop-size", 64, "--device", "cpu", "--num-workers", 0, "--backbone-weights", "none")
SCRIPTS = {
    "2dgs_counting_1gs_gsplat.py": ("--num-epochs", 2, "--overwrite", "--workers", 1),
    "GS2D/process_gaussians.py": (),
    "GS2D/build_kernels.py": ("--workers", 1),
    "datasets/check.py": ("--workers", 1, "--crop-size", 64),
    "train_gs.py": TRAIN,
    "test.py": ("--split", "val", "--device", "cpu"),
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", Tiny)
    monkeypatch.setattr("train_gs.build_model", Tiny)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_weights(tmp_path / "m.pth", Tiny().state_dict(), {"model_name": "vgg", "topk": 0.3, "usenum": 18})
    return make_data(tmp_path / "prepared")


def more(script, folder):
    saves = {
        "train_gs.py": ("--save-dir", folder / "run", "--resume", "none", "--overwrite"),
        "test.py": ("--save-path", folder / "m.pth"),
    }
    return *SCRIPTS[script], *saves.get(script, ())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_and_its_configuration_file_take_both_names(work, script):
    """The command line wins over the file, whatever the names."""
    config, options = work.parent / "own.yml", more(script, work.parent)
    config.write_text(f"data_dir: {work}\n")
    call(script, "--config", config, *options)
    config.write_text(f"root-path: {work / 'none'}\n")
    call(script, "--config", config, "--data-dir", work, *options)
    call(script, "--config", config, "--root-path", work, *options)


def test_preprocessing_and_comparing(work, tmp_path):
    _, err = call("preprocess_dataset_ucf.py", "--origin-dir", tmp_path / "no", "--root-path", tmp_path / "out", code=1)
    assert f"{tmp_path / 'no'}" in errors(err)[0]
    for name in ("--data-dir", "--root-path"):
        _, err = call("scripts/compare_losses.py", work, name, work, code=2)
        assert f"{name}: this script sets it for each run" in errors(err)[0]
    assert "--data-dir P, --root-path P" in call("train_gs.py", "--help")[0]


def test_a_negated_switch_is_no_key(work):
    (work.parent / "own.yml").write_text("no_compile: true\n")
    _, err = call("train_gs.py", "--config", work.parent / "own.yml", "--data-dir", work, code=2)
    assert "unknown key 'no_compile'" in errors(err)[0]
