"""What the folder of a run says is true, whatever happened to the run: through the command line."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from commands import call, errors
from training_runs import Tiny, checkpoint, clean, largest_difference, metrics, train, weights

import train_gs
from utils.files import list_images, points_path, split_hashes
from utils.training import run_folder, schedule
from utils.training.run_folder import RunFolder, shareable

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def data(data, tmp_path_factory):
    """With round Gaussians, so that training comes next."""
    return clean(shutil.copytree(data, tmp_path_factory.mktemp("folder") / "data"))


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """A checkpoint of another run, of one epoch."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        train(data, folder, "--epochs", 1, "--seed", 5)
    return folder / "0_ckpt.tar"


def stop(*_, **__):
    raise KeyboardInterrupt


def interrupted(data, folder, epoch, *options):
    """Train until Ctrl-C at the beginning of ``epoch`` -> the last line of the output."""
    set_epoch = train_gs.Crowd.set_epoch
    with pytest.MonkeyPatch.context() as patch:
        stop_there = lambda self, number: stop() if number == epoch else set_epoch(self, number)  # noqa: E731
        patch.setattr(train_gs.Crowd, "set_epoch", stop_there)
        return train(data, folder, *options, code=130)[1].splitlines()[-1]


def stages(data, runs):
    return json.loads(call("datasets/check.py", "--quick", "--data-dir", data, "--runs", runs, "--json")[0])


def paste(command):
    """Run a ``python SCRIPT ...`` line."""
    _, script, *arguments = shlex.split(command)
    return call(script, *arguments)


def evaluate(run, data, *options, code=0):
    return call(
        "test.py", "--save-path", run, "--data-dir", data, "--split", "val", "--device", "cpu", *options, code=code
    )


def contents(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("start", ["none", "file", "weights", "overwrite"])
def test_the_next_line_goes_on_however_the_run_was_begun(data, tmp_path, other, start):
    best = other.with_name("best_model.pth")
    start = {"none": ("--resume", "none"), "overwrite": ("--overwrite",)}.get(
        start, ("--resume", other if start == "file" else best)
    )
    options, run = ("--epochs", 3, "--lr", 1e-3, *start), tmp_path / "runs" / "one"
    train(data, tmp_path / "whole", *options)
    if start == ("--overwrite",):
        train(data, run, "--epochs", 1, "--lr", 1e-2)
    line = interrupted(data, run, 2, *options)
    status = stages(data, tmp_path / "runs")
    assert [(run["state"], run["epochs_done"], run["epochs"]) for run in status["runs"]] == [("interrupted", 2, 3)]
    assert "resume" not in yaml.safe_load((run / "config.yml").read_text())
    if start[-1] in ("none", "--overwrite"):  # the same command would begin anew: the line names one that goes on
        assert line == f"interrupted; {status['next']} goes on where this one stopped"
        paste(status["next"])
    else:
        assert line == "interrupted; the same command goes on where this one stopped"
        train(data, run, *options)
    assert largest_difference(weights(run), weights(tmp_path / "whole")) == 0
    epochs = [line["epoch"] for line in metrics(tmp_path / "whole")]
    assert [line["epoch"] for line in metrics(run)] == epochs and epochs[-1] == 2
    assert stages(data, tmp_path / "runs")["runs"][0]["state"] == "done"


def test_what_is_of_one_machine_is_told_nobody():
    options = {"data_dir": "/disk", "lr": 1e-5, "backbone_weights": "/disk/vgg.pth"}
    assert shareable(options) == {"lr": 1e-5, "backbone_weights": "vgg.pth"}


def test_a_start_from_a_file_that_did_no_epoch_goes_on_from_that_file(data, tmp_path, other):
    options = "--epochs", 3, "--resume", other
    interrupted(data, tmp_path / "runs" / "one", 1, *options)
    paste(stages(data, tmp_path / "runs")["next"])
    train(data, tmp_path / "whole", *options)
    assert largest_difference(weights(tmp_path / "runs" / "one"), weights(tmp_path / "whole")) == 0
    assert [line["epoch"] for line in metrics(tmp_path / "runs" / "one")] == [1, 2]


def test_a_start_anew_over_a_run_is_refused_and_nothing_changes(data, tmp_path, other):
    """With its checkpoint and without, and where its best model is all that is left of it."""
    run = tmp_path / "runs" / "one"
    train(data, run, "--epochs", 2)
    files = [("--resume", path) for path in (other, other.with_name("best_model.pth"))]
    for is_tidied in (False, True):
        if is_tidied:
            (run / "1_ckpt.tar").unlink()
        before = contents(tmp_path)
        for options in (("--resume", "none"), ("--resume", "none", "--epochs", 9), *files, ("--lr", 1)):
            (line,) = errors(train(data, run, *options, code=1)[1])
            assert str(run) in line and "--save-dir" in line and "--overwrite" in line
            assert contents(tmp_path) == before
    (found,) = stages(data, tmp_path / "runs")["runs"]
    assert (found["state"], found["epochs_done"], found["epochs"]) == ("done", 2, 2)
    assert "holds a run of 2 epochs" in train(data, run, "--epochs", 2, code=1)[1]
    (run / "run.json").unlink()
    assert "holds a run; choose another --save-dir, or --overwrite" in train(data, run, "--epochs", 2, code=1)[1]


def test_overwrite_removes_all_of_the_old_run_before_the_first_step(data, tmp_path):
    train(data, tmp_path, "--epochs", 2, "--val-start", 0, "--val-every", 1, "--save-all")
    evaluate(tmp_path, data, "--out", tmp_path / "val")
    (tmp_path / "notes.txt").write_text("mine")
    assert {"best_model.pth", "best_model_0.pth", "model_card.md", "evaluations.json", "val"} <= names(tmp_path)
    interrupted(data, tmp_path, 0, "--epochs", 3, "--lr", 1e-3, "--overwrite")
    assert names(tmp_path) == {"config.yml", "run.json", "environment.json", "tensorboard", "notes.txt", "val"}
    assert yaml.safe_load((tmp_path / "config.yml").read_text())["lr"] == 1e-3
    _, err = evaluate(tmp_path, data, code=1)
    assert f"{tmp_path / 'best_model.pth'}: no such weights file" in errors(err)[0]


def test_what_cannot_begin_overwrites_nothing(data, tmp_path):
    own, none = tmp_path / "run" / "best_model.pth", tmp_path / "none.pth"
    train(data, tmp_path / "run", "--epochs", 1)
    before = contents(tmp_path)
    problems = [("--data-dir", tmp_path / "none"), ("--crop-size", 100)]
    problems += [(option, path) for option in ("--resume", "--backbone-weights") for path in (none, own)]
    for option, value in problems:
        code = 2 if value == 100 else 1
        (line,) = errors(train(data, tmp_path / "run", "--overwrite", option, value, code=code)[1])
        assert contents(tmp_path) == before
        assert value != own or f"{own}: a start anew removes it; choose another --save-dir" in line


def test_ctrl_c_before_a_run_begins_names_no_file_that_is_not_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gs.Crowd, "read_once", stop)
    for start in (("--resume", "none"), ("--overwrite",)):
        _, err = train(data, tmp_path / "run", *start, code=130)
        assert err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"


def test_a_start_removes_nothing_that_is_not_of_its_run(data, tmp_path):
    """In the folder above that of a run and its evaluations; then anew."""
    runs = tmp_path / "runs"
    train(data, runs / "one", "--epochs", 1)
    for out in (runs / "one" / "test", runs / "elsewhere"):
        evaluate(runs / "one", data, "--out", out)
    (runs / "tensorboard").mkdir()
    (runs / "tensorboard" / "of another program").touch()
    before = contents(runs)
    train(data, runs, "--epochs", 1)
    assert {**contents(runs), **before} == contents(runs)
    del before[runs / "tensorboard" / "of another program"]  # now it is among those of a run
    train(data, runs, "--epochs", 1, "--overwrite")
    assert {**contents(runs), **before} == contents(runs)


@pytest.mark.parametrize("start", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_kill_at_any_change_of_the_folder_changes_nothing_of_what_comes(data, tmp_path, monkeypatch, other, start):
    """Then the same command again, or what ``next:`` says."""
    one, before, left = tmp_path / "runs" / "one", tmp_path / "before", []
    options = "--epochs", 3, "--lr", 1e-3, "--save-all", "--val-start", 0, "--val-every", 1, "--resume", other, *start
    train(data, one, "--epochs", 1)
    one.rename(before)

    for name in ("_remove", "atomic_write", "write_json"):

        def counted(*what, change=getattr(run_folder, name)):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return change(*what)

        monkeypatch.setattr(run_folder, name, counted)

    def begin(moment, code):
        shutil.rmtree(one, ignore_errors=True)
        if start:
            shutil.copytree(before, one)
        left[:] = [None] * moment
        train(data, one, *options, code=code)

    def files():
        found = {path.relative_to(one): content for path, content in contents(one).items()}
        return {path: content for path, content in found.items() if path.suffix in (".tar", ".pth")}, names(one)

    begin(99, 0)
    whole, changes = files(), 99 - len(left)
    assert changes > 7
    for moment in range(changes):
        begin(moment, 130)
        left[:] = [None] * 199
        line = "" if start else stages(data, tmp_path / "runs")["next"]
        killed = shutil.copytree(one, tmp_path / f"killed{moment}")
        train(data, one, *options)
        assert files() == whole, moment
        if "--config" in line:
            shutil.rmtree(one)
            killed.rename(one)
            paste(line)
            assert files() == whole, moment


def test_what_an_unfinished_first_epoch_left_does_not_count(data, tmp_path):
    """Killed between the best model of the first epoch and its checkpoint; then with another rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop)
        train(data, tmp_path / "run", "--epochs", 1, code=130)
    assert (tmp_path / "run" / "best_model.pth").exists()
    for name in ("run", "whole"):
        train(data, tmp_path / name, "--epochs", 1, "--lr", 1e-3)
    one, other = ((tmp_path / name / "best_model.pth").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_a_best_model_belongs_to_its_validation_images(data, tmp_path):
    """Other annotations, which the network meets much worse: its first validation on them chooses anew."""
    copy, folder = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    options = "--lr", 1e-3, "--val-start", 0, "--val-every", 1, "--epochs"
    train(copy, folder, *options, 2)
    before = RunFolder(folder).best()
    (image,) = list_images(copy / "val")
    np.save(points_path(image), np.random.default_rng(0).uniform(1, 79, (500, 2)).astype(np.float32))
    split_hashes.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "validate", stop)
        train(copy, folder, *options, 4, code=130)
    assert RunFolder(folder).best() == before  # it says on which images it was the best
    train(copy, folder, *options, 4)
    after = RunFolder(folder).best()
    assert after["epoch"] >= 2 and after["val_mae"] > 300 and after["val_hash"] != before["val_hash"]
    split_hashes.cache_clear()


def test_averaged_weights_are_what_a_checkpoint_means(data, tmp_path):
    train(data, tmp_path, "--epochs", 2, "--lr", 1e-2, "--ema", 0.9)
    torch.save(weights(tmp_path), tmp_path / "raw.pth")
    files = "best_model.pth", "1_ckpt.tar", "raw.pth"
    best, saved, raw = (evaluate(tmp_path / name, data)[0].splitlines()[0] for name in files)
    assert best == saved != raw


def test_a_run_that_goes_on_writes_the_bytes_of_one_that_was_not_interrupted(data, tmp_path):
    folder, options = tmp_path / "run", ("--epochs", 3, "--lr", 1e-3, "--ema", 0.9, "--resume", "auto")
    files = folder / "2_ckpt.tar", folder / "best_model.pth"
    train(data, folder, *options)
    whole = [path.read_bytes() for path in files]
    for go_on in (
        lambda: train(data, folder, *options),
        lambda: call("train_gs.py", "--config", folder / "config.yml"),
    ):
        shutil.rmtree(folder)
        interrupted(data, folder, 1, *options)
        go_on()
        assert [path.read_bytes() for path in files] == whole


def test_a_run_of_minutes_ends_in_time_with_a_finished_schedule_and_is_then_done(data, tmp_path, monkeypatch):
    folder, options = tmp_path / "runs" / "one", ("--lr", 1e-3, "--lr-schedule", "cosine", "--minutes")
    looks = itertools.count(step=0.1)  # seconds from one look at the clock to the next, however busy the machine
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: next(looks)))
    train(data, folder, *options, 0.04)
    assert 2.2 < next(looks) < 2.4 + 2 * 0.1  # the last checkpoint's look, and this one
    lines, status = metrics(folder), stages(data, tmp_path / "runs")
    assert len(lines) > 3 and "val_mae" in lines[-1] and lines[-1]["val_seconds"] > 0
    assert lines[0]["lr"] > 0.5e-3 and lines[-1]["lr"] < 0.2e-3
    (run,) = status["runs"]
    assert run["state"] == "done" and run["epochs_done"] == run["epochs"] == len(lines) < 1200
    assert "train_gs.py" not in status["next"]
    assert f"for {run['epochs']} of {run['epochs']} epochs" in (folder / "model_card.md").read_text()
    out, _ = paste(f"python train_gs.py --config {folder / 'config.yml'}")
    assert "nothing to do" in out and stages(data, tmp_path / "runs") == status
    train(data, folder, *options, 0.02)  # other minutes: more of them
    assert len(metrics(folder)) > len(lines)


def test_an_interrupted_run_of_minutes_has_the_minutes_that_are_left(data, tmp_path):
    folder = tmp_path / "runs" / "one"
    interrupted(data, folder, 2, "--minutes", 600)
    assert stages(data, tmp_path / "runs")["runs"][0]["state"] == "interrupted"
    (path,) = folder.glob("*_ckpt.tar")
    content = checkpoint(folder)
    assert 0 < content["seconds"] < 60
    torch.save(content | {"seconds": 3.6e4 - 1e-3}, path)  # of all 600 minutes a millisecond is left
    train(data, folder, "--minutes", 600)
    assert len(metrics(folder)) == 3 and stages(data, tmp_path / "runs")["runs"][0]["state"] == "done"


def test_the_crops_of_a_step_must_agree_and_not_how_they_are_divided(data, tmp_path):
    train(data, tmp_path, "--epochs", 1, "--batch-size", 4)
    train(data, tmp_path, "--epochs", 2, "--batch-size", 2, "--accumulate", 2)  # as after "out of memory"
    for division in (("--batch-size", 2), ("--accumulate", 8)):
        _, err = train(data, tmp_path, "--epochs", 3, *division, code=1)
        assert "holds a run with 4 crops in a step" in errors(err)[0]
