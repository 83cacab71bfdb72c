"""Files are written beside the training, checkpoints by time, and nothing but a kill loses what no file holds."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from commands import errors
from training_runs import Tiny, largest_difference, metrics, start, train, wait_until, weights

from datasets.crowd import Crowd
from utils.training import record
from utils.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny")
FULL = "best_model.pth: cannot write this file (No space left on device)"


def test_a_checkpoint_is_written_when_an_epoch_ends_and_its_time_has_come(data, tmp_path, monkeypatch):
    """Every epoch takes two minutes."""
    now, saved, set_epoch, save = [0.0], [], Crowd.set_epoch, RunFolder.save_checkpoint
    monkeypatch.setattr(record, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    monkeypatch.setattr(Crowd, "set_epoch", lambda self, epoch: (now.append(now.pop() + 120), set_epoch(self, epoch)))
    monkeypatch.setattr(
        RunFolder, "save_checkpoint", lambda self, epoch, *a, **k: (saved.append(epoch), save(self, epoch, *a, **k))
    )
    for minutes, expected in ((5, [2, 5, 6]), (0, list(range(7))), (60, [6])):
        saved.clear()
        train(data, tmp_path / str(minutes), "--epochs", 7, "--checkpoint-minutes", minutes, "--lr", 1e-3)
        assert saved == expected and len(metrics(tmp_path / str(minutes))) == 7
    assert largest_difference(weights(tmp_path / "5"), weights(tmp_path / "60")) == 0


@pytest.mark.parametrize("failures", [1, 9], ids=["once", "always"])
def test_no_checkpoint_is_ahead_of_a_best_model_that_could_not_be_written(data, tmp_path, monkeypatch, failures):
    """The disk is full at the end of the run, which is one line; then there is room, and the same command again."""
    options = "--lr", 1e-3, "--epochs", 4, "--val-start", 0, "--val-every", 1
    train(data, tmp_path / "run", *options)
    whole = (tmp_path / "run" / "best_model.pth").read_bytes()
    shutil.rmtree(tmp_path / "run")
    left, save = [None] * failures, RunFolder.save_best

    def save_best(self, state, about, *, keep_each):
        if about["epoch"] == 3 and left:
            left.pop()
            raise OSError(FULL)
        save(self, state, about, keep_each=keep_each)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", save_best)
        _, err = train(data, tmp_path / "run", *options, code=1)
    assert errors(err) == [f"error: {FULL}"]
    train(data, tmp_path / "run", *options)
    assert (tmp_path / "run" / "best_model.pth").read_bytes() == whole


@pytest.mark.parametrize("request_to_end", [signal.SIGTERM, signal.SIGINT], ids=["SLURM's", "Ctrl-C"])
def test_a_request_to_end_keeps_the_epochs_that_no_checkpoint_holds(data, tmp_path, monkeypatch, request_to_end):
    """It reaches the loading processes too, whatever they are doing; five minutes have not passed."""
    monkeypatch.setattr(Tiny, "dropout", 0)  # as in the process that is started
    folder = tmp_path / "run"
    run = start(data, folder, "--epochs", 3000, "--num-workers", 1, "--lr", 1e-3)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) > 2, run)
    assert not list(folder.glob("*_ckpt.tar"))
    os.killpg(run.pid, request_to_end)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err and "Error" not in err
    assert err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    done = len(metrics(folder))
    assert [path.name for path in folder.glob("*_ckpt.tar")] == [f"{done - 1}_ckpt.tar"] and done >= 3
    for place in (folder, tmp_path / "whole"):
        train(data, place, "--epochs", done + 2, "--lr", 1e-3)
    assert largest_difference(weights(folder), weights(tmp_path / "whole")) == 0
