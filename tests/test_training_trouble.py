"""Training when something goes wrong: not finite, not readable, out of memory, killed, another run's files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT, errors, kill_group
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from models import Prediction
from utils.device import network_errors
from utils.files import gaussians_path, make_folder, points_path
from utils.lock import hold


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("trouble") / "data")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_is_set_aside(data, tmp_path, monkeypatch):
    calls = []

    class Broken(Tiny):
        """NaN in the third step of the second epoch."""

        def forward(self, images):
            calls.append(self.training)
            density, attention = super().forward(images)
            return Prediction(density * (float("nan") if sum(calls) == 7 else 1), attention)

    monkeypatch.setattr(train_gs, "build_model", Broken)
    _, err = train(data, tmp_path / "run", "--epochs", 3, code=1)
    aside = tmp_path / "run" / "trouble"
    assert (
        len(errors(err)) == 1 and "epoch 1, batch 2: the loss of IMG_000" in err and "is not finite; lower --lr" in err
    )
    assert str(aside) in err
    batch = torch.load(aside / "epoch1_step2_batch.pt", weights_only=True)
    assert [image.shape for image in batch["images"]] == [(3, 64, 64)] and batch["names"][0] in err
    out, _ = train(data, tmp_path / "again", "--epochs", 2, "--resume", aside / "last_good_ckpt.tar")
    assert "going on with epoch 1" in out and len(metrics(tmp_path / "again")) == 1


def test_a_gradient_that_is_not_finite_stops_before_the_step(data, tmp_path, monkeypatch):
    class Broken(Tiny):
        """Its loss is finite, its gradient is not."""

        def forward(self, images):
            density, attention = super().forward(images)
            root = (density * 0).sqrt()  # 0, with derivative infinity * 0
            return Prediction(density + root, attention)

    monkeypatch.setattr(train_gs, "build_model", Broken)
    _, err = train(data, tmp_path, "--epochs", 1, code=1)
    assert len(errors(err)) == 1 and "epoch 0, batch 0: the gradient of IMG_000" in err and "is not finite" in err
    state = torch.load(tmp_path / "trouble" / "last_good_ckpt.tar", weights_only=True)
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_stops_the_run_or_is_skipped(data, tmp_path, tiny, workers):
    copy = shutil.copytree(data, tmp_path / "data")
    bad = copy / "train" / "IMG_0002.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    options = ["--epochs", 2, "--num-workers", workers]
    _, err = train(copy, tmp_path / "stops", *options, code=1)
    assert len(errors(err)) == 1 and str(bad) in err
    _, err = train(copy, tmp_path / "skips", *options, "--skip-bad-samples")
    assert err.count("skipped: ") == 2 and str(bad) in err
    assert [line["skipped"] for line in metrics(tmp_path / "skips")] == [1, 1]
    for image in (copy / "train").glob("*.jpg"):
        image.write_bytes(b"no picture")
    _, err = train(copy, tmp_path / "none", *options, "--skip-bad-samples", code=1)
    assert "none of 4 images can be used" in errors(err)[-1]


def test_running_out_of_memory_says_what_to_lower(data, tmp_path, monkeypatch):
    class Huge(Tiny):
        def forward(self, images):
            return super().forward(images.new_empty(1 << 60))

    monkeypatch.setattr(train_gs, "build_model", Huge)
    _, err = train(data, tmp_path, "--epochs", 1, "--batch-size", 3, code=1)
    (line,) = errors(err)
    assert line.startswith("error: out of memory; lower one of --batch-size 3 and --crop-size 64")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ],
    ids=["python", "cuda", "worker"],
)
def test_every_lack_of_memory_is_one_line(error):
    with pytest.raises(ValueError, match="out of memory.*; lower it$"), network_errors("lower it"):
        raise error


def test_other_runtime_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shape mismatch"), network_errors("lower it"):
        raise RuntimeError("shape mismatch")


def test_a_checkpoint_of_another_network_or_a_damaged_one_is_refused(data, tmp_path):
    train(data, tmp_path / "run", "--epochs", 1, "--batch-size", 4)
    checkpoint = tmp_path / "run" / "0_ckpt.tar"
    _, err = train(data, tmp_path / "o", "--model-name", "vgg_trans", "--resume", checkpoint, code=1)
    assert len(errors(err)) == 1 and str(checkpoint) in err and "--model-name vgg" in err
    checkpoint.write_bytes(checkpoint.read_bytes()[:100_000])
    for resume in ("auto", checkpoint):
        _, err = train(data, tmp_path / "run", "--epochs", 2, "--batch-size", 4, "--resume", resume, code=1)
        assert len(errors(err)) == 1 and f"{checkpoint}: not a readable PyTorch weights file" in err
    _, err = train(data, tmp_path / "run", "--resume", tmp_path / "no.tar", code=1)
    assert errors(err) == [f"error: {tmp_path / 'no.tar'}: no such weights file, check the path"]


def test_an_optimizer_state_of_something_else_is_refused(data, tmp_path, tiny):
    train(data, tmp_path / "run", "--epochs", 1)
    content = torch.load(tmp_path / "run" / "0_ckpt.tar", weights_only=True)
    for number, change in enumerate(({"optimizer_state_dict": {"state": {}, "param_groups": []}}, {"epoch": "last"})):
        torch.save(content | change, path := tmp_path / f"{number}.tar")
        _, err = train(data, tmp_path / "o", "--epochs", 2, "--resume", path, code=1)
        assert len(errors(err)) == 1 and f"{path}: its training state does not fit this run" in err


def test_released_checkpoints_start_a_run(data, tmp_path, tiny):
    """The released trainer writes three keys, with an Adam of an older PyTorch; and bare weights."""
    train(data, tmp_path / "whole", "--epochs", 4)
    train(data, tmp_path / "part", "--epochs", 2)
    content = torch.load(tmp_path / "part" / "1_ckpt.tar", weights_only=True)
    released = {key: content[key] for key in ("epoch", "optimizer_state_dict", "model_state_dict")}
    for group in released["optimizer_state_dict"]["param_groups"]:
        for key in set(group) - {"lr", "betas", "eps", "weight_decay", "amsgrad", "params"}:
            del group[key]
    for entry in released["optimizer_state_dict"]["state"].values():
        entry["step"] = int(entry["step"])
    torch.save(released, tmp_path / "1_ckpt.tar")
    out, _ = train(data, tmp_path / "on", "--epochs", 4, "--resume", tmp_path / "1_ckpt.tar")
    assert "going on with epoch 2" in out
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "on")) == 0
    assert [line["epoch"] for line in metrics(tmp_path / "on")] == [2, 3]
    for group in released["optimizer_state_dict"]["param_groups"]:  # of a run without the fused step
        group |= {"fused": None, "foreach": True, "capturable": False, "maximize": False, "differentiable": False}
    torch.save(released, tmp_path / "1_ckpt.tar")
    train(data, tmp_path / "foreign", "--epochs", 4, "--resume", tmp_path / "1_ckpt.tar")
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "foreign")) == 0

    torch.save(released["model_state_dict"], tmp_path / "best_model.pth")
    out, _ = train(data, tmp_path / "weights", "--epochs", 1, "--resume", tmp_path / "best_model.pth")
    assert "training begins with them at epoch 0" in out
    start, end = released["model_state_dict"], weights(tmp_path / "weights")
    assert 0 < largest_difference(start, end) <= 4 * 5e-6 * 1.01


def test_another_weight_decay_takes_effect_in_a_run_that_goes_on(data, tmp_path, tiny):
    """Adam's state holds the decay of the run that it comes from."""
    train(data, tmp_path / "run", "--epochs", 1)
    start = tmp_path / "run" / "0_ckpt.tar"
    for name, decay in (("same", 1e-5), ("other", 10.0)):
        train(data, tmp_path / name, "--epochs", 2, "--resume", start, "--weight-decay", decay)
        state = torch.load(tmp_path / name / "1_ckpt.tar", weights_only=True)
        (group,) = state["optimizer_state_dict"]["param_groups"]
        assert group["weight_decay"] == decay and group["fused"] and not group["foreach"]
    assert largest_difference(weights(tmp_path / "same"), weights(tmp_path / "other")) > 1e-6


def test_a_killed_run_goes_on_to_the_same_weights(data, tmp_path, tiny, monkeypatch):
    """A cut-off line of the log and a half-written checkpoint stay behind."""
    monkeypatch.setattr(Tiny, "dropout", 0)  # as train_tiny.py has it
    folder, epochs = tmp_path / "killed", 30
    options = [
        "--data-dir",
        data,
        "--device",
        "cpu",
        "--backbone-weights",
        "none",
        "--crop-size",
        64,
        "--epochs",
        epochs,
        "--checkpoint-minutes",
        0,
    ]
    command = [sys.executable, "tests/train_tiny.py", *options, "--save-dir", folder, "--num-workers", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, start_new_session=True) as run:
        while run.poll() is None and not any(folder.glob("*_ckpt.tar")):
            time.sleep(0.02)
        kill_group(run.pid)
    assert any(folder.glob("*_ckpt.tar")) and not (folder / f"{epochs - 1}_ckpt.tar").exists()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 1, "loss"')
    (folder / f".1_ckpt.{os.uname().nodename}.999999999.partial.tar").write_bytes(b"half of a checkpoint")
    train(data, folder, "--epochs", epochs)
    train(data, tmp_path / "whole", "--epochs", epochs)
    assert largest_difference(weights(folder), weights(tmp_path / "whole")) == 0
    assert [line["epoch"] for line in metrics(folder)] == list(range(epochs))
    assert not list(folder.glob(".*partial*"))


def test_an_interrupted_run_says_one_line(data, tmp_path):
    """Whatever its loading processes, which Ctrl-C reaches too, are doing."""
    fixed = "--device cpu --backbone-weights none --crop-size 64 --epochs 3000 --num-workers 2 --checkpoint-minutes 0"
    where_it_stopped = "the same command goes on where this one stopped"
    for resume, what in (
        ("auto", where_it_stopped),
        ("none", f"python train_gs.py --config {tmp_path / 'none' / 'config.yml'} goes on where this one stopped"),
    ):
        folder, where = tmp_path / resume, ["--data-dir", data, "--save-dir", tmp_path / resume, "--resume", resume]
        command = [sys.executable, "tests/train_tiny.py", *fixed.split(), *where]
        with subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
        ) as run:
            while run.poll() is None and not any(folder.glob("*_ckpt.tar")):
                time.sleep(0.02)
            os.killpg(run.pid, signal.SIGINT)
            _, err = run.communicate(timeout=60)
        assert run.returncode == 130
        assert err.splitlines()[-1] == f"interrupted; {what}"
        assert "Traceback" not in err and "Error" not in err


def test_missing_points_and_gaussians_are_named(data, tmp_path, tiny):
    copy = shutil.copytree(data, tmp_path / "data")
    gaussians_path(copy / "train" / "IMG_0001.jpg").unlink()
    _, err = train(copy, tmp_path / "run", code=1)
    assert len(errors(err)) == 1 and "IMG_0001_gs_params.h5" in err and "2dgs_counting_1gs_gsplat.py" in err
    shutil.copytree(data, copy, dirs_exist_ok=True)
    np.save(points_path(copy / "train" / "IMG_0001.jpg"), np.zeros((1, 3), np.float32))
    _, err = train(copy, tmp_path / "run", "--epochs", 1, code=1)
    assert len(errors(err)) == 1 and "Gaussians, but" in err and "has 1 points" in err


@pytest.mark.parametrize("change", [lambda means: means * 1.5, lambda means: means[::-1]], ids=["scaled", "reversed"])
def test_gaussians_of_other_points_stop_the_run_before_its_first_epoch(data, tmp_path, tiny, change):
    copy = shutil.copytree(data, tmp_path / "data")
    path = gaussians_path(copy / "train" / "IMG_0001.jpg")
    with h5py.File(path, "r+") as file:
        file["params"][:, :2] = change(file["params"][:, :2])
    _, err = train(copy, tmp_path / "run", "--epochs", 1, code=1)
    (line,) = errors(err)
    points = copy / "train" / "IMG_0001.npy"
    assert re.fullmatch(
        rf"error: {path}: centres lie up to \d+\.\d pixels from the points of {points}; delete .*", line
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_second_run_in_the_folder_is_told_who_is_there(data, tmp_path, tiny):
    with hold(make_folder(tmp_path / "run")):
        _, err = train(data, tmp_path / "run", "--epochs", 1, code=1)
    assert len(errors(err)) == 1 and f"{tmp_path / 'run'}: in use by process {os.getpid()}" in err
    train(data, tmp_path / "run", "--epochs", 1)
    assert not (tmp_path / "run" / ".run.lock").exists()
