"""What the folder of a run says is true, whatever happened to the run: through the command line."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import lightning_fabric
import numpy as np
import pytest
import torch
import yaml
from commands import call, errors
from lightning_fabric.plugins import MixedPrecision
from training_runs import Tiny, largest_difference, make_data, metrics, train, weights

import hubconf
import models
import train_gs
from GS2D.gaussians import Gaussians2D
from models import Prediction
from utils.files import gaussians_path, list_images, points_path, split_hashes
from utils.images import load_image
from utils.training import run_folder, steps
from utils.training.run_folder import RunFolder, shareable


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """With round Gaussians, so that training comes next."""
    root = make_data(tmp_path_factory.mktemp("folder") / "data")
    shutil.rmtree(root / "val" / "gs_params")
    for image in list_images(root / "train"):
        gaussians = Gaussians2D.load(gaussians_path(image))
        gaussians.scales[:, 1] = gaussians.scales[:, 0]
        gaussians.save(gaussians_path(image))
    return root


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(models, "build_model", Tiny)


def interrupted(data, folder, epoch, *options):
    """Train until Ctrl-C at the beginning of ``epoch`` -> the last line that was said."""
    set_epoch = train_gs.Crowd.set_epoch

    def stop_there(self, number):
        set_epoch(self, number)
        if number == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs.Crowd, "set_epoch", stop_there)
        return train(data, folder, *options, code=130)[1].splitlines()[-1]


def stages(data, runs):
    return json.loads(call("datasets/check.py", "--quick", "--data-dir", data, "--runs", runs, "--json")[0])


def paste(command):
    """Run a ``python SCRIPT ...`` line."""
    _, script, *arguments = shlex.split(command)
    return call(script, *arguments)


def contents(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def other_run(data, folder, *options):
    """A checkpoint of another run, of one epoch, whose score (as runs of before wrote it down) none will better."""
    train(data, folder, "--epochs", 1, "--seed", 5, *options)
    content = torch.load(folder / "0_ckpt.tar", weights_only=True)
    torch.save(content | {"best": 0.0}, folder / "0_ckpt.tar")
    return folder / "0_ckpt.tar"


@pytest.mark.parametrize("start", ["none", "file", "weights", "overwrite"])
def test_the_next_line_goes_on_however_the_run_was_begun(data, tmp_path, start):
    resume = {"none": ("--resume", "none"), "overwrite": ("--overwrite",)}.get(start)
    if not resume:
        checkpoint = other_run(data, tmp_path / "other")
        resume = "--resume", checkpoint if start == "file" else checkpoint.with_name("best_model.pth")
    options = "--epochs", 4, "--lr", 1e-3, *resume
    train(data, tmp_path / "whole", *options)
    if start == "overwrite":
        train(data, tmp_path / "runs" / "one", "--epochs", 1, "--lr", 1e-2)
    said = interrupted(data, tmp_path / "runs" / "one", 2, *options)
    status = stages(data, tmp_path / "runs")
    assert [(run["state"], run["epochs_done"], run["epochs"]) for run in status["runs"]] == [("interrupted", 2, 4)]
    assert "resume" not in yaml.safe_load((tmp_path / "runs" / "one" / "config.yml").read_text())
    if start in ("none", "overwrite"):  # the same command would begin anew: the line names one that goes on
        assert said == f"interrupted; {status['next']} goes on where this one stopped"
        paste(status["next"])
    else:
        assert said == "interrupted; the same command goes on where this one stopped"
        train(data, tmp_path / "runs" / "one", *options)
    assert largest_difference(weights(tmp_path / "runs" / "one"), weights(tmp_path / "whole")) == 0
    epochs = [line["epoch"] for line in metrics(tmp_path / "whole")]
    assert [line["epoch"] for line in metrics(tmp_path / "runs" / "one")] == epochs and epochs[-1] == 3
    assert stages(data, tmp_path / "runs")["runs"][0]["state"] == "done"


@pytest.mark.parametrize("start", ["the command", "the file"])
def test_a_run_of_before_whose_options_are_no_more_goes_on(data, tmp_path, start):
    folder = tmp_path / "run"
    train(data, folder, "--epochs", 1, "--val-start", 9)
    config = folder / "config.yml"
    config.write_text(config.read_text() + "pixels: decoded\npixels_dir: /disk/of/mine\nresume: none\n")
    if start == "the file":
        out, _ = call("train_gs.py", "--config", config, "--epochs", 2)
        assert f"{config}: pixels, pixels_dir, resume: accepted, but without effect" in out
    else:
        train(data, folder, "--epochs", 2, "--val-start", 9)
    assert len(metrics(folder)) == 2
    assert "pixels" not in yaml.safe_load(config.read_text())


def test_a_place_on_a_disk_is_told_nobody_also_by_a_run_of_before():
    assert shareable({"pixels_dir": "/disk/of/mine", "data_dir": "/disk", "lr": 1e-5}) == {"lr": 1e-5}


def test_a_start_from_a_file_that_did_no_epoch_goes_on_from_that_file(data, tmp_path):
    options = "--epochs", 3, "--resume", other_run(data, tmp_path / "other")
    interrupted(data, tmp_path / "runs" / "one", 1, *options)
    paste(stages(data, tmp_path / "runs")["next"])
    train(data, tmp_path / "whole", *options)
    assert largest_difference(weights(tmp_path / "runs" / "one"), weights(tmp_path / "whole")) == 0
    assert [line["epoch"] for line in metrics(tmp_path / "runs" / "one")] == [1, 2]


@pytest.mark.parametrize(
    "options",
    [
        ("--resume", "none"),
        ("--resume", "none", "--epochs", 9),
        ("--resume", "FILE"),
        ("--resume", "WEIGHTS"),
        ("--lr", 1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
@pytest.mark.parametrize("tidied", [False, True], ids=["", "without its checkpoint"])
def test_a_start_anew_over_a_run_is_refused_and_nothing_changes(data, tmp_path, options, tidied):
    files = {"FILE": other_run(data, tmp_path / "other"), "WEIGHTS": tmp_path / "other" / "best_model.pth"}
    folder = tmp_path / "run"
    train(data, folder, "--epochs", 2)
    if tidied:
        (folder / "1_ckpt.tar").unlink()
    before = contents(tmp_path)
    _, err = train(data, folder, *(files.get(option, option) for option in options), code=1)
    (line,) = errors(err)
    assert str(folder) in line and "--save-dir" in line and "--overwrite" in line
    assert contents(tmp_path) == before


def test_a_run_without_its_checkpoint_is_not_begun_again_unasked(data, tmp_path):
    train(data, tmp_path / "runs" / "one", "--epochs", 1)
    (tmp_path / "runs" / "one" / "0_ckpt.tar").unlink()
    (run,) = stages(data, tmp_path / "runs")["runs"]
    assert (run["state"], run["epochs_done"], run["epochs"]) == ("done", 1, 1)
    _, err = train(data, tmp_path / "runs" / "one", "--epochs", 1, code=1)
    assert "holds a run of 1 epochs" in errors(err)[0]
    (tmp_path / "runs" / "one" / "run.json").unlink()  # a folder of before: its best model is a trace
    _, err = train(data, tmp_path / "runs" / "one", "--epochs", 1, code=1)
    assert "holds a run; choose another --save-dir, or --overwrite" in errors(err)[0]


def test_overwrite_removes_all_of_the_old_run_before_the_first_step(data, tmp_path):
    folder = tmp_path / "run"
    train(data, folder, "--epochs", 2, "--val-start", 0, "--val-every", 1, "--save-all")
    call(
        "test.py",
        "--save-path",
        folder,
        "--data-dir",
        data,
        "--split",
        "val",
        "--device",
        "cpu",
        "--out",
        folder / "val",
    )
    (folder / "trouble").mkdir()
    (folder / "trouble" / "last_good_ckpt.tar").touch()
    (folder / "notes.txt").write_text("mine")
    assert {"best_model.pth", "best_model_0.pth", "model_card.md", "evaluations.json", "val"} <= names(folder)
    interrupted(data, folder, 0, "--epochs", 3, "--lr", 1e-3, "--overwrite")
    assert names(folder) == {"config.yml", "run.json", "environment.json", "tensorboard", "notes.txt"}
    assert yaml.safe_load((folder / "config.yml").read_text())["lr"] == 1e-3
    _, err = call("test.py", "--save-path", folder, "--data-dir", data, "--split", "val", "--device", "cpu", code=1)
    assert f"{folder / 'best_model.pth'}: no such weights file" in errors(err)[0]


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("problem", ["data", "file", "own", "own backbone", "weights", "options"])
def test_what_cannot_begin_overwrites_nothing(data, tmp_path, problem):
    train(data, tmp_path / "run", "--epochs", 1)
    before = contents(tmp_path)
    options, code = ["--overwrite"], 1
    if problem == "data":
        options += ["--data-dir", tmp_path / "none"]
    elif problem == "file":
        options += ["--resume", tmp_path / "none.tar"]
    elif problem == "own":
        options += ["--resume", tmp_path / "run" / "best_model.pth"]
    elif problem == "own backbone":
        options += ["--backbone-weights", tmp_path / "run" / "best_model.pth"]
    elif problem == "weights":
        options += ["--backbone-weights", tmp_path / "none.pth"]
    else:
        options, code = [*options, "--crop-size", 100], 2
    _, err = train(data, tmp_path / "run", *options, code=code)
    assert len(errors(err)) == 1 and contents(tmp_path) == before
    if problem.startswith("own"):
        assert "best_model.pth: a start anew removes it; choose another --save-dir" in err


@pytest.mark.parametrize("start", [("--resume", "none"), ("--overwrite",)], ids=["none", "overwrite"])
def test_ctrl_c_before_a_run_begins_names_no_file_that_is_not_its_own(data, tmp_path, monkeypatch, start):
    monkeypatch.setattr(train_gs.Crowd, "read_once", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    _, err = train(data, tmp_path / "run", *start, code=130)
    assert err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"


def test_a_start_from_what_it_would_remove_is_refused(data, tmp_path):
    """The state before crops that broke the first epoch, with a lower rate, in the same folder."""
    train(data, tmp_path / "run", "--epochs", 1, "--lr", 1e30, code=1)
    before = contents(tmp_path)
    resume = "--resume", tmp_path / "run" / "trouble" / "last_good_ckpt.tar"
    _, err = train(data, tmp_path / "run", "--epochs", 1, *resume, code=1)
    assert f"{resume[1]}: a start anew removes it; choose another --save-dir" in errors(err)[0]
    assert contents(tmp_path) == before


def test_a_start_removes_nothing_that_is_not_of_its_run(data, tmp_path):
    """In the folder above that of a run and its evaluations; then anew."""
    runs, fixed = tmp_path / "runs", ("--data-dir", data, "--split", "val", "--device", "cpu")
    train(data, runs / "one", "--epochs", 1)
    for out in (runs / "one" / "test", runs / "elsewhere"):
        call("test.py", "--save-path", runs / "one", *fixed, "--out", out)
    (runs / "tensorboard").mkdir()
    (runs / "tensorboard" / "of another program").touch()
    before = contents(runs)
    train(data, runs, "--epochs", 1)
    call("test.py", "--save-path", runs, *fixed, "--out", runs / "test")
    assert {**contents(runs), **before} == contents(runs)
    del before[runs / "tensorboard" / "of another program"]  # now it is among those of a run
    train(data, runs, "--epochs", 1, "--overwrite")
    assert {**contents(runs), **before} == contents(runs) and not (runs / "test").exists()


@pytest.mark.parametrize("start", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_kill_at_any_change_of_the_folder_changes_nothing_of_what_comes(data, tmp_path, monkeypatch, start):
    """Then the same command again, or what ``next:`` says."""
    one, before, left = tmp_path / "runs" / "one", tmp_path / "before", []
    options = "--epochs", 3, "--lr", 1e-3, "--save-all", "--val-start", 0, "--val-every", 1, *start
    options += "--resume", other_run(data, tmp_path / "other")
    train(data, one, "--epochs", 1)
    out = one / "val"
    call("test.py", "--save-path", one, "--data-dir", data, "--split", "val", "--device", "cpu", "--out", out)
    one.rename(before)

    for name in ("_remove", "atomic_write", "write_json"):

        def counted(*what, change=getattr(run_folder, name)):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return change(*what)

        monkeypatch.setattr(run_folder, name, counted)

    def files_of(moment, go_on):
        shutil.rmtree(one, ignore_errors=True)
        if start:
            shutil.copytree(before, one)
        left[:] = [None] * moment
        if go_on:
            train(data, one, *options, code=130)
            left[:] = [None] * 99
        line = stages(data, tmp_path / "runs")["next"] if go_on == "next" else ""
        paste(line) if "--config" in line else train(data, one, *options)
        files = {path.relative_to(one): content for path, content in contents(one).items()}
        return {path: content for path, content in files.items() if path.suffix in (".tar", ".pth")}, names(one)

    whole = files_of(99, None)
    changes = 99 - len(left)
    assert changes > 7 and out.name not in whole[1]
    for moment in range(changes):
        assert files_of(moment, "the same") == whole, moment
        if not start:
            assert files_of(moment, "next") == whole, moment


def test_what_an_unfinished_first_epoch_left_does_not_count(data, tmp_path):
    """Killed between the best model of the first epoch and its checkpoint; then with another rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train(data, tmp_path / "run", "--epochs", 1, code=130)
    assert (tmp_path / "run" / "best_model.pth").exists()
    for name in ("run", "whole"):
        train(data, tmp_path / name, "--epochs", 1, "--lr", 1e-3)
    one, other = ((tmp_path / name / "best_model.pth").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_a_best_model_belongs_to_its_run(data, tmp_path):
    """A checkpoint of other data, with an error that is never reached again, continued in a new folder."""
    checkpoint = other_run(data, tmp_path / "other")
    out, _ = train(data, tmp_path / "run", "--epochs", 3, "--resume", checkpoint, "--val-start", 0, "--val-every", 1)
    best = min(metrics(tmp_path / "run"), key=lambda line: 2 * line["val_mse"] + line["val_mae"])
    score = 2 * best["val_mse"] + best["val_mae"]
    assert f"best 2 MSE + MAE on val: {score:.3f}; {tmp_path / 'run' / 'best_model.pth'}" in out
    found = RunFolder(tmp_path / "run").best()
    assert (found["epoch"], found["val_mae"], found["val_mse"]) == (best["epoch"], best["val_mae"], best["val_mse"])


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
        patch.setattr(train_gs, "validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(copy, folder, *options, 4, code=130)
    assert RunFolder(folder).best() == before  # it says on which images it was the best
    train(copy, folder, *options, 4)
    after = RunFolder(folder).best()
    assert after["epoch"] >= 2 and after["val_mae"] > 300 and after["val_hash"] != before["val_hash"]
    split_hashes.cache_clear()


def test_averaged_weights_are_what_a_checkpoint_means(data, tmp_path):
    folder = tmp_path / "run"
    train(data, folder, "--epochs", 2, "--lr", 1e-2, "--ema", 0.9)
    fixed = "--data-dir", data, "--split", "val", "--device", "cpu"
    counts, raw = {}, torch.load(folder / "1_ckpt.tar", weights_only=True)
    torch.save(raw["model_state_dict"], tmp_path / "raw.pth")
    for path in (folder / "best_model.pth", folder / "1_ckpt.tar", tmp_path / "raw.pth"):
        counts[path.name] = call("test.py", "--save-path", path, *fixed)[0].splitlines()[0]
    assert counts["best_model.pth"] == counts["1_ckpt.tar"] != counts["raw.pth"]
    image = load_image(list_images(data / "val")[0])
    best, checkpoint = (hubconf.Counter(path, "cpu").count(image) for path in (folder, folder / "1_ckpt.tar"))
    assert best == checkpoint
    # What training goes on with is not the average.
    train(data, folder, "--epochs", 3, "--lr", 1e-2, "--ema", 0.9)
    train(data, tmp_path / "whole", "--epochs", 3, "--lr", 1e-2, "--ema", 0.9)
    assert largest_difference(weights(folder), weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize("go_on", ["the command", "the file"])
def test_a_run_that_goes_on_writes_the_bytes_of_one_that_was_not_interrupted(data, tmp_path, go_on):
    folder, options = tmp_path / "run", ("--epochs", 3, "--lr", 1e-3, "--ema", 0.9, "--resume", "auto")
    train(data, folder, *options)
    whole = {path: contents(folder)[path] for path in (folder / "2_ckpt.tar", folder / "best_model.pth")}
    shutil.rmtree(folder)
    interrupted(data, folder, 1, *options)
    train(data, folder, *options) if go_on == "the command" else call("train_gs.py", "--config", folder / "config.yml")
    assert whole == {path: contents(folder)[path] for path in whole}


def test_a_run_of_minutes_says_when_it_is_done(data, tmp_path):
    options = "--minutes", 0.02, "--lr", 1e-3
    train(data, tmp_path / "runs" / "one", *options)
    status = stages(data, tmp_path / "runs")
    (run,) = status["runs"]
    assert (
        run["state"] == "done" and run["epochs_done"] == run["epochs"] == len(metrics(tmp_path / "runs" / "one")) < 1200
    )
    assert "train_gs.py" not in status["next"]
    hours_of = (tmp_path / "runs" / "one" / "model_card.md").read_text()
    assert f"for {run['epochs']} of {run['epochs']} epochs" in hours_of
    out, _ = paste(f"python train_gs.py --config {tmp_path / 'runs' / 'one' / 'config.yml'}")
    assert "nothing to do" in out and stages(data, tmp_path / "runs") == status


def test_an_interrupted_run_of_minutes_has_the_minutes_that_are_left(data, tmp_path):
    folder = tmp_path / "runs" / "one"
    interrupted(data, folder, 2, "--minutes", 600)
    assert stages(data, tmp_path / "runs")["runs"][0]["state"] == "interrupted"
    (checkpoint,) = folder.glob("*_ckpt.tar")
    content = torch.load(checkpoint, weights_only=True)
    assert 0 < content["seconds"] < 60
    torch.save(content | {"seconds": 3.6e4 - 1e-3}, checkpoint)  # of all 600 minutes a millisecond is left
    train(data, folder, "--minutes", 600)
    assert len(metrics(folder)) == 3 and stages(data, tmp_path / "runs")["runs"][0]["state"] == "done"


def test_the_crops_of_a_step_must_agree_and_not_how_they_are_divided(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "dropout", 0)  # whose mask follows the batch
    options = "--lr", 1e-3, "--epochs"
    train(data, tmp_path / "whole", *options, 2, "--batch-size", 4)
    train(data, tmp_path / "parts", *options, 1, "--batch-size", 4)
    train(data, tmp_path / "parts", *options, 2, "--batch-size", 2, "--accumulate", 2)  # as after "out of memory"
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) <= 1e-5
    for division in (("--batch-size", 2), ("--accumulate", 8)):
        _, err = train(data, tmp_path / "parts", *options, 3, *division, code=1)
        assert "holds a run with 4 crops in a step" in errors(err)[0]
    assert RunFolder(tmp_path / "parts").find_start("auto", False, {}, crops=4)  # 2 processes of 2, for one
    with pytest.raises(ValueError, match="4 crops in a step .*, not 8; choose another --save-dir"):
        RunFolder(tmp_path / "parts").find_start("auto", False, {}, crops=8)


class NeverFinite(Tiny):
    """Its density is finite, and its gradient never: 0 with derivative infinity * 0."""

    def forward(self, images):
        density, attention = super().forward(images)
        return Prediction(density + (density * 0).sqrt() if self.training else density, attention)


@pytest.mark.parametrize(("network", "scale", "stops"), [(NeverFinite, 4.0, True), (Tiny, 0.25, False)])
def test_float16_that_no_scale_helps_stops_the_run(data, tmp_path, monkeypatch, network, scale, stops):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    class WithScaler(lightning_fabric.Fabric):
        def __init__(self, precision, **options):
            super().__init__(**options, plugins=[plugin])

    monkeypatch.setattr(lightning_fabric, "Fabric", WithScaler)
    monkeypatch.setattr(train_gs, "build_model", network)
    monkeypatch.setattr(steps, "CHECK_EVERY", 2)
    _, err = train(data, tmp_path, "--epochs", 3, code=1 if stops else 0)
    if stops:
        (line,) = errors(err)  # 4, 2, 1, 1/2, 1/4: seen after the fourth step
        assert line.startswith("error: epoch 0, batch 3: the gradient of") and "is not finite; lower --lr" in line
