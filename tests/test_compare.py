"""Experiments: what differs between runs, what the tables say, interruption, failures, refits."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, errors
from training_runs import make_data, metrics, wait_until

from GS2D.gaussians import Gaussians2D
from losses import LOSSES
from scripts import compare_losses, experiments
from scripts.experiments import Children
from utils.evaluation import mae_mse
from utils.files import gaussians_path, list_images, points_path, read_points
from utils.training.run_folder import RunFolder

FAST = "--backbone-weights none --crop-size 64 --device cpu --num-workers 0 --epochs 1 --lr 1e-4".split()
# Stand-ins that import nothing: a training of which the first of a folder does not end, and an evaluation.
TRAINING = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--save-dir") + 1])
with (folder / "pids").open("a") as pids:
    first = pids.tell() == 0
    pids.write(f"{os.getpid()}\\n")
time.sleep(60 * first)
figures = {"epoch": 0, "val_mae": 1, "val_mse": 1, "seconds": 0.02, "time": {"loss": 0.01}}
(folder / "metrics.jsonl").write_text(json.dumps(figures) + "\\n")
"""
EVALUATION = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(exist_ok=True)
(folder / "results.csv").write_text("image,truth,predicted,error\\na,3,5,2\\nb,4,4,0\\n")
(folder / "summary.json").write_text('{"localisation": {"4": {"f1": 0.2}, "8": {"f1": 0.25}}}')
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("comparison") / "data")
    shutil.copytree(root / "val", root / "test")
    image = list_images(root / "train")[-1]
    for path in (image, points_path(image)):
        shutil.copy(path, root / "test")
    return root


def compare(data, out, *options, code=0):
    return call("scripts/compare_losses.py", data, "--out", out, *options, code=code)


def planned(*options):
    """The runs of a comparison with these options."""
    return experiments.plan(*compare_losses.parse([str(option) for option in options]))


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_differ_in_the_loss_only(data):
    runs = planned(data, "--seeds", 1, *FAST)
    assert [run.name for run in runs] == compare_losses.GROUPS["all"]
    common = [{k: v for k, v in run.effective.items() if k not in ("loss", "sigma", "save_dir")} for run in runs]
    assert all(one == common[0] for one in common) and common[0]["seed"] == 4073
    assert [run.effective["loss"] for run in runs[:-1]] == list(LOSSES)
    assert [(run.effective["loss"], run.effective["sigma"]) for run in runs[-2:]] == [("mse", 15), ("mse", "adaptive")]


def test_the_tables_hold_what_the_runs_found_and_finished_runs_are_kept(data, tmp_path, here):
    options = ("--losses", "bl", "mse", "--seeds", 2, "--jobs", 2, "--keep-models", *FAST)
    compare(data, tmp_path, *options)
    runs, table = read(tmp_path / "runs.csv"), read(tmp_path / "table.csv")
    assert [(run["loss"], run["seed"]) for run in runs] == [(r, s) for r in ("bl", "mse") for s in ("4073", "4074")]
    for row in table[:-1]:
        found = [run for run in runs if run["loss"] == row["loss"]]
        for key, column, decimals in (("mae", "MAE", 1), ("mse", "MSE", 1), ("f1", "F1 at 8 px", 2)):
            values = [float(run[key]) for run in found]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            assert row[column] == f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
        for run in found:
            results = read(tmp_path / f"{run['loss']}_seed{run['seed']}" / "test" / "results.csv")
            results.sort(key=lambda one: float(one["truth"]))
            few, many = [float(one["predicted"]) - float(one["truth"]) for one in results]
            assert float(run["mae"]) == pytest.approx((abs(few) + abs(many)) / 2)
            assert float(run["mse"]) == pytest.approx(math.sqrt((few**2 + many**2) / 2))
            assert [float(run[f"{half}_error"]) for half in ("sparse", "dense")] == pytest.approx([few, many])
            assert 0 < float(run["loss_seconds"]) < float(run["train_seconds"])
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row['loss']} | {row['seeds']} | {row['MAE']} | {row['MSE']} |" in text for row in table)
    assert not [path for pattern in ("*.tar", "*.partial*") for path in tmp_path.rglob(pattern)]

    here.clear()
    (tmp_path / "mse_seed4074" / "result.json").unlink()
    assert "4 runs, 3 of them were there" in compare(data, tmp_path, *options)[0]
    assert [command[0] for command, _ in here] == ["train_gs.py", "test.py"]
    assert read(tmp_path / "table.csv")[1]["MAE"] == table[1]["MAE"]
    _, err = compare(data, tmp_path, *options, "--weight-decay", 0.5, code=1)
    assert "weight_decay 1e-05 instead of 0.5; choose another --out" in errors(err)[0] and len(errors(err)) == 1
    compare(data, tmp_path, "--losses", "bl", "bl", "--seeds", 1, *FAST)
    assert len(list(tmp_path.rglob("best_model.pth"))) == 4 and len(read(tmp_path / "table.csv")) == 2
    assert len(here) == 2


def test_the_mean_predictor_is_the_mean_density_of_train_and_val(data):
    counts = {
        split: [len(read_points(points_path(i))) for i in list_images(data / split)] for split in ("train", "val")
    }
    truths = [len(read_points(points_path(image))) for image in list_images(data / "test")]
    guess = statistics.mean(counts["train"] + counts["val"])  # all pictures are of one size
    expected = mae_mse([experiments.Result("", truth, guess) for truth in truths])
    assert mae_mse(experiments.guess_counts(data, "test")) == pytest.approx(expected)


def test_a_run_that_fails_is_named_and_the_others_go_on(data, tmp_path, here, monkeypatch):
    monkeypatch.setitem(compare_losses.CHOICES, "gst", ["--loss", "gst", "--kernels", "h5"])  # there are none
    _, err = compare(data, tmp_path, "--losses", "gst", "mse", "--seeds", 1, *FAST, code=1)
    lines = errors(err)
    assert lines[0].startswith("error: gst, seed 4073: ") and "build_kernels.py" in lines[0]
    assert lines[1:] == ["error: 1 of 2 runs failed; the same command tries them again"]
    assert [row["loss"] for row in read(tmp_path / "table.csv")] == ["mse", "mean density of the training images"]


def test_recipes(data, tmp_path):
    options = [data, "--recipes", "--dataset", "sha", "--epochs", 3, "--out", tmp_path, "--seeds", 1]
    runs = {run.name: run.effective for run in planned(*options)}
    chosen = ("lr", "weight_decay", "batch_size", "crop_size", "warm_up_epochs", "epochs", "loss")
    assert [runs["gst"][key] for key in chosen] == [5e-6, 1e-5, 1, 256, 0, 3, "gst"]
    assert [runs["bl+"][key] for key in chosen] == [1e-5, 1e-4, 1, 512, 0, 3, "bl+"]
    assert [runs["dm-count"][key] for key in chosen] == [1e-5, 1e-4, 10, 256, 0, 3, "dm-count"]
    assert [runs["gloss"][key] for key in chosen] == [1e-5, 1e-5, 1, 256, 10, 3, "gloss"]
    (bl,) = planned(*options, "--dataset", "nwpu", "--losses", "bl")
    assert [bl.effective[key] for key in chosen] == [1e-5, 1e-4, 1, 384, 0, 3, "bl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "3"), "--seed: this script sets it"),
        (("--loss=bl",), "--loss: this script sets it"),
        (("--recipes", "--config", "x.yml"), "--config: this script sets it"),
        (("--nonsense", "3"), "unrecognized arguments: --nonsense"),
        (("--losses", "l2"), "invalid choice: 'l2'"),
        (("--jobs", "0"), "argument --jobs: 0 is impossible"),
    ],
)
def test_wrong_options(data, tmp_path, options, message):
    _, err = compare(data, tmp_path / "out", *options, code=2)
    assert message in errors(err)[0] and not (tmp_path / "out").exists()


def test_data_that_cannot_be_compared(data, tmp_path):
    _, err = compare(tmp_path / "nowhere", tmp_path / "out", code=1)
    assert "no such folder" in errors(err)[0] and str(tmp_path / "nowhere") in errors(err)[0]
    secret = Path(shutil.copytree(data, tmp_path / "secret"))
    for path in (secret / "test").glob("*.npy"):
        path.unlink()
    _, err = compare(secret, tmp_path / "out", code=1)
    assert "take --split val" in errors(err)[0]


def test_children_end_with_their_parent_and_say_why_they_failed(tmp_path):
    log = tmp_path / "log.txt"
    with Children() as children:
        with pytest.raises(ValueError, match="bad luck .*log.txt"):
            children.run(["-c", "print('error: bad luck'); raise SystemExit(1)"], log)
        with pytest.raises(ValueError, match="-c ended with exit code 2 .*finished work is kept"):
            children.run(["-c", "raise SystemExit(2)"])
        children.running.add(child := subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    assert child.wait(10) == -signal.SIGTERM
    with pytest.raises(ValueError, match="stopped"):
        children.run(["-c", ""], log)


def test_an_unfinished_run_goes_on(data, tmp_path, here, tiny):
    options = ("--losses", "mse", "--seeds", 1, *FAST, "--val-start", 1, "--epochs", 2)
    (run,) = planned(data, "--out", tmp_path, *options)
    call("train_gs.py", *run.options, "--epochs", 1)
    (first,) = metrics(run.folder)
    compare(data, tmp_path, *options)
    assert metrics(run.folder)[0] == first and len(metrics(run.folder)) == 2  # with the seconds that it took


def test_a_killed_comparison_takes_its_children_along_and_goes_on(data, tmp_path, monkeypatch):
    for name, text in (("TRAIN", TRAINING), ("TEST", EVALUATION)):
        monkeypatch.setattr(experiments, name, tmp_path / f"{name}.py")
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(RunFolder, "best", lambda folder: {"epoch": 0, "val_mae": 1, "val_mse": 1})
    out, options = tmp_path / "out", ("--losses", "bl", "mse", "--seeds", 1, "--jobs", 2)
    driver = multiprocessing.get_context("fork").Process(
        target=compare, args=(data, out, *options), kwargs={"code": 130}
    )
    driver.start()
    trainings = [out / f"{label}_seed4073" / "pids" for label in ("bl", "mse")]
    wait_until(lambda: all(pids.exists() and pids.read_text() for pids in trainings), driver)
    driver.terminate()
    driver.join(60)
    assert driver.exitcode == 0  # it ended with the 130 that ``compare`` expects
    for pids in trainings:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pids.read_text()), 0)
        assert not (pids.parent / "result.json").exists()
    assert "2 runs, 0 of them were there" in compare(data, out, *options)[0]
    for row, pids in zip(read(out / "runs.csv"), trainings):
        assert (row["mae"], row["f1"], row["f1_4px"], row["epochs"]) == ("1.0", "0.25", "0.2", "1")
        assert (row["sparse_error"], row["dense_error"]) == ("2.0", "0.0")
        assert len(pids.read_text().split()) == 2


def test_the_ladder_climbs_from_bl_to_gst(data, tmp_path, here, monkeypatch):
    monkeypatch.setitem(compare_losses.FITS, "gst-tolerance-0", ["--num-epochs", "5", "--workers", "1"])
    ladder = ["gst-tolerance-0", "gst-edge"]
    options = ("--crowds", data, "--out", tmp_path / "out", "--seeds", 1, *FAST, "--rungs", *ladder)
    call("scripts/compare_losses.py", *options)
    rows = read(tmp_path / "out" / "crowds.csv")
    assert [row["rung"] for row in rows[:-1]] == ladder and all(row["error, dense"][0] in "+-" for row in rows[:-1])
    refitted = tmp_path / "out" / "gst-tolerance-0"
    for image in list_images(data / "train"):
        link = refitted / "train" / image.name
        assert link.resolve() == image.resolve()
        assert (Gaussians2D.load(gaussians_path(link)).scales != Gaussians2D.load(gaussians_path(image)).scales).any()
    here.clear()
    call("scripts/compare_losses.py", *options)
    assert len(here) == 2  # the fit and the cleaning, which find all done


def test_every_rung_of_the_ladder_is_a_run_that_can_be_started(data, tmp_path):
    """With the published kernel where a rung says so, whatever kernel the options give."""
    options = ("--crowds", data, "--out", tmp_path, "--seeds", 1)
    other = ("--cut-off", 1, "--background-ratio", 0.5)
    rungs = {run.name: run.effective for run in planned(*options, *other, "--rungs", "ladder", "losses", "gst")}
    ladder, losses = compare_losses.GROUPS["ladder"], compare_losses.GROUPS["losses"]
    assert list(rungs) == list(dict.fromkeys([*ladder, *losses, "gst"]))
    assert [run.name for run in planned(*options)] == ladder
    kernels = {
        name: [o[key] for key in ("post_min", "post_max", "cut_off", "background_ratio")] for name, o in rungs.items()
    }
    assert kernels["gst-published"] == [1, 20, 3, 0.015] and kernels["gst-edge"] == [4, 20, 1, 2]
    assert kernels["gst-round"] == [1, 8, 3, 0.015] and kernels["gst-2px"] == [4, 20, 3, 0.015]
    assert kernels["gst"] == [1, 20, 1, 0.5]
    assert rungs["bl-trans"]["model_name"] == "vgg_trans" and rungs["mse-4"]["sigma"] == 4
