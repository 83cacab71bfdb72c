"""Files are written beside the training, checkpoints by time, and nothing but a kill loses what no file holds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from commands import ROOT, errors
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import train_gs
from utils.training import writer
from utils.training.record import RunLog
from utils.training.run_folder import RunFolder
from utils.training.writer import Writer, snapshot


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("writer") / "data")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)


def test_a_checkpoint_is_written_when_an_epoch_ends_and_its_time_has_come(data, tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(writer, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    save, add_epoch = RunFolder.save_checkpoint, RunLog.add_epoch

    def two_minutes(self, entry):
        now[0] += 120
        add_epoch(self, entry)

    monkeypatch.setattr(RunLog, "add_epoch", two_minutes)
    monkeypatch.setattr(
        RunFolder, "save_checkpoint", lambda self, epoch, *a, **k: (saved.append(epoch), save(self, epoch, *a, **k))
    )
    for minutes, expected in ((5, [2, 5, 6]), (0, list(range(7))), (60, [6])):
        saved.clear()
        train(data, tmp_path / str(minutes), "--epochs", 7, "--checkpoint-minutes", minutes, "--lr", 1e-3)
        assert saved == expected and len(metrics(tmp_path / str(minutes))) == 7
    assert largest_difference(weights(tmp_path / "5"), weights(tmp_path / "60")) == 0
    _, err = train(data, tmp_path / "below", "--checkpoint-minutes", -1, code=2)
    assert "--checkpoint-minutes: -1 is impossible" in err


def test_of_best_models_that_come_faster_than_the_disk_takes_them_the_newest_is_written(tmp_path):
    folder, go_on, written = RunFolder(tmp_path), threading.Event(), []

    class Slow(RunFolder):
        def save_best(self, state_dict, description, *, keep_each):
            go_on.wait(10)
            written.append((float(state_dict["w"]), description["epoch"]))

    with Writer(Slow(folder.path), 1, 5, lambda: None) as beside:
        weight = torch.zeros(1)
        for epoch in range(4):
            beside.save_best({"w": weight}, {"epoch": epoch}, keep_each=False)
            weight += 1  # what was handed over is a copy
            if not epoch:
                time.sleep(0.1)  # the thread is at work on the first
        go_on.set()
    assert written == [(0.0, 0), (3.0, 3)]


def test_a_state_is_copied_with_what_it_says_of_itself():
    state = Tiny().to(memory_format=torch.channels_last).state_dict()
    copied = snapshot({"model": state, "steps": [1, (torch.ones(2), "a")]}).wait()
    assert copied["model"]._metadata == state._metadata and type(copied["model"]) is type(state)
    for key, value in state.items():
        other = copied["model"][key]
        assert torch.equal(value, other) and value.stride() == other.stride() and value.data_ptr() != other.data_ptr()
    assert copied["steps"][1][1] == "a" and torch.equal(copied["steps"][1][0], torch.ones(2))


def test_what_the_thread_cannot_write_ends_the_run_with_one_line(data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("1_ckpt.tar: cannot write this file (No space left on device)")

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    _, err = train(data, tmp_path, "--epochs", 3, "--checkpoint-minutes", 0, code=1)
    assert errors(err) == ["error: 1_ckpt.tar: cannot write this file (No space left on device)"]


@pytest.mark.parametrize("failures", [1, 9], ids=["once", "always"])
def test_no_checkpoint_is_ahead_of_a_best_model_that_could_not_be_written(data, tmp_path, monkeypatch, failures):
    """The disk is full at the end of the run; then there is room, and the same command again."""
    options = "--lr", 1e-3, "--epochs", 4, "--val-start", 0, "--val-every", 1
    train(data, tmp_path / "run", *options)
    whole = (tmp_path / "run" / "best_model.pth").read_bytes()
    shutil.rmtree(tmp_path / "run")

    def save_best(self, state, about, *, keep_each, left=[None] * failures, save=RunFolder.save_best):  # noqa: B006
        if about["epoch"] == 3 and left:
            left.pop()
            raise OSError("best_model.pth: cannot write this file (No space left on device)")
        save(self, state, about, keep_each=keep_each)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", save_best)
        _, err = train(data, tmp_path / "run", *options, code=1)
    assert errors(err) == ["error: best_model.pth: cannot write this file (No space left on device)"]
    train(data, tmp_path / "run", *options)
    assert (tmp_path / "run" / "best_model.pth").read_bytes() == whole


@pytest.mark.parametrize("to_group", [False, True], ids=["to the training", "to its group"])
def test_a_request_to_end_keeps_the_epochs_that_no_checkpoint_holds(data, tmp_path, monkeypatch, to_group):
    """As SLURM sends it before it kills, to one process or to all; five minutes have not passed."""
    monkeypatch.setattr(Tiny, "dropout", 0)  # as train_tiny.py has it
    folder = tmp_path / "run"
    fixed = "--device cpu --backbone-weights none --crop-size 64 --epochs 3000 --num-workers 1 --lr 1e-3"
    command = [
        sys.executable,
        "tests/train_tiny.py",
        *fixed.split(),
        "--data-dir",
        str(data),
        "--save-dir",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as run:
        while run.poll() is None and not ((folder / "metrics.jsonl").exists() and len(metrics(folder)) > 2):
            time.sleep(0.02)
        assert not list(folder.glob("*_ckpt.tar"))
        (os.killpg if to_group else os.kill)(run.pid, signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    assert (
        run.returncode == 130 and err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    )
    (checkpoint,) = folder.glob("*_ckpt.tar")
    done = RunFolder(folder).progress()["done"]
    assert checkpoint.name == f"{done - 1}_ckpt.tar" and len(metrics(folder)) == done >= 3
    for place in (folder, tmp_path / "whole"):
        train(data, place, "--epochs", done + 2, "--lr", 1e-3)
    assert largest_difference(weights(folder), weights(tmp_path / "whole")) == 0
