"""Experiments: what differs between runs, what the tables say, interruption, failures."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import statistics
from pathlib import Path

import pytest
from commands import ROOT, call, errors, table
from training_runs import make_data, metrics, wait_until

from losses import LOSSES
from scripts import compare_losses
from scripts.compare_losses import Result, guess_counts
from utils.evaluation import mae_mse
from utils.files import list_images, points_path, read_points
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
(folder / "best_model.pth").touch()
"""
EVALUATION = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir()
(folder / "results.csv").write_text("image,truth,predicted,error\\na,3,5,2\\nb,4,4,0\\n")
summary = {"mae": {"value": 1.0}, "mse": {"value": 1.4}, "localisation": {"4": {"f1": 0.2}, "8": {"f1": 0.25}}}
(folder / "summary.json").write_text(json.dumps(summary))
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
    """What the runs of a comparison with these options depend on, by name."""
    runs = compare_losses.parse([str(option) for option in options])[1]
    return {run.name: run.effective for run in runs}


def test_runs_differ_in_the_loss_only(data):
    runs = planned(data, "--seeds", 1, *FAST)
    assert list(runs) == [*LOSSES, "mse-adaptive"]
    common = [{k: v for k, v in run.items() if k not in ("loss", "sigma", "save_dir")} for run in runs.values()]
    assert all(one == common[0] for one in common) and common[0]["seed"] == 4073
    assert [run["loss"] for run in runs.values()] == [*LOSSES, "mse"]
    assert (runs["mse"]["sigma"], runs["mse-adaptive"]["sigma"]) == (15, "adaptive")


def test_the_tables_hold_what_the_runs_found_and_finished_runs_are_kept(data, tmp_path, here):
    options = ("--losses", "bl", "mse", "--seeds", 2, "--jobs", 2, *FAST)
    compare(data, tmp_path, *options)
    runs, rows = table(tmp_path / "runs.csv"), table(tmp_path / "table.csv")
    assert [(run["loss"], run["seed"]) for run in runs] == [(r, s) for r in ("bl", "mse") for s in ("4073", "4074")]
    for row in rows[:-1]:
        found = [run for run in runs if run["loss"] == row["loss"]]
        for key, column, decimals in (("mae", "MAE", 1), ("mse", "MSE", 1), ("f1", "F1 at 8 px", 2)):
            values = [float(run[key]) for run in found]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            assert row[column] == f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
        for run in found:
            results = table(tmp_path / f"{run['loss']}_seed{run['seed']}" / "test" / "results.csv")
            results.sort(key=lambda one: float(one["truth"]))
            close = {"abs": 1e-4}  # of four decimals in results.csv
            few, many = [float(one["predicted"]) - float(one["truth"]) for one in results]
            assert float(run["mae"]) == pytest.approx((abs(few) + abs(many)) / 2, **close)
            assert float(run["mse"]) == pytest.approx(math.sqrt((few**2 + many**2) / 2), **close)
            assert [float(run[f"{half}_error"]) for half in ("sparse", "dense")] == pytest.approx([few, many])
            assert 0 < float(run["loss_seconds"]) < float(run["train_seconds"])
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row['loss']} | {row['seeds']} | {row['MAE']} | {row['MSE']} |" in text for row in rows)
    assert not [path for pattern in ("*.tar", "*.partial*") for path in tmp_path.rglob(pattern)]

    here.clear()
    (tmp_path / "mse_seed4074" / "result.json").unlink()
    assert "4 runs, 3 of them were there" in compare(data, tmp_path, *options)[0]
    assert [command[0] for command, _ in here] == ["train_gs.py", "test.py"]
    assert table(tmp_path / "table.csv")[1]["MAE"] == rows[1]["MAE"]
    _, err = compare(data, tmp_path, *options, "--weight-decay", 0.5, code=1)
    assert "weight_decay 1e-05 instead of 0.5; choose another folder" in errors(err)[0] and len(errors(err)) == 1
    compare(data, tmp_path, "--losses", "bl", "bl", "--seeds", 1, *FAST)
    assert len(table(tmp_path / "table.csv")) == 2 and len(here) == 2


def test_the_mean_predictor_is_the_mean_density_of_train_and_val(data):
    known = [len(read_points(points_path(i))) for split in ("train", "val") for i in list_images(data / split)]
    truths = [len(read_points(points_path(image))) for image in list_images(data / "test")]
    expected = mae_mse([Result("", truth, statistics.mean(known)) for truth in truths])  # all pictures are of one size
    assert mae_mse(guess_counts(data, "test")) == pytest.approx(expected)


def test_a_run_that_fails_is_named_and_the_others_go_on(data, tmp_path, here, monkeypatch):
    monkeypatch.setitem(compare_losses.CHOICES, "gst", ["--loss", "gst", "--kernels", "h5"])  # there are none
    _, err = compare(data, tmp_path, "--losses", "gst", "mse", "--seeds", 1, *FAST, code=1)
    failed, summary = errors(err)
    assert failed.startswith("error: gst, seed 4073: ") and "build_kernels.py" in failed and "log.txt" in failed
    assert summary == "error: 1 of 2 runs failed; the same command tries them again"
    assert [row["loss"] for row in table(tmp_path / "table.csv")] == ["mse", "mean density of the training images"]


def test_recipes(data, tmp_path):
    options = [data, "--recipes", "--dataset", "sha", "--epochs", 3, "--out", tmp_path, "--seeds", 1]
    runs = planned(*options) | {"nwpu": planned(*options, "--dataset", "nwpu", "--losses", "bl")["bl"]}
    chosen = ("lr", "weight_decay", "batch_size", "crop_size", "warm_up_epochs", "epochs", "loss")
    expected = {
        "gst": [5e-6, 1e-5, 1, 256, 0, 3, "gst"],
        "bl+": [1e-5, 1e-4, 1, 512, 0, 3, "bl+"],
        "dm-count": [1e-5, 1e-4, 10, 256, 0, 3, "dm-count"],
        "gloss": [1e-5, 1e-5, 1, 256, 10, 3, "gloss"],
        "nwpu": [1e-5, 1e-4, 1, 384, 0, 3, "bl"],
    }
    assert {name: [runs[name][key] for key in chosen] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "3"), "--seed: this script sets it"),
        (("--loss=bl",), "--loss: this script sets it"),
        (("--recipes", "--config", "x.yml"), "--config: this script sets it"),
        (("--nonsense", "3"), "unrecognized arguments: --nonsense"),
        (("--losses", "l2"), "invalid choice: 'l2'"),
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


def test_an_unfinished_run_goes_on(data, tmp_path, here, tiny):
    options = ("--losses", "mse", "--seeds", 1, *FAST, "--val-start", 1, "--epochs", 2)
    _, (run,) = compare_losses.parse([str(option) for option in (data, "--out", tmp_path, *options)])
    call(*run.commands[0], "--epochs", 1)
    (first,) = metrics(run.folder)
    compare(data, tmp_path, *options)
    assert metrics(run.folder)[0] == first and len(metrics(run.folder)) == 2  # with the seconds that it took


def test_a_killed_comparison_takes_its_children_along_and_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_losses, "ROOT", tmp_path)
    for name, text in (("train_gs", TRAINING), ("test", EVALUATION)):
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
    for row, pids in zip(table(out / "runs.csv"), trainings):
        assert (row["mae"], row["f1"], row["f1_4px"], row["epochs"]) == ("1.0", "0.25", "0.2", "1")
        assert (row["sparse_error"], row["dense_error"]) == ("2.0", "0.0")
        assert len(pids.read_text().split()) == 2


def test_every_rung_of_the_ladder_is_a_run_that_can_be_started(data, tmp_path):
    """With the published kernel where a rung says so, whatever kernel the options give."""
    names = ("--rungs", "ladder", "losses", "gst")
    rungs = planned(data, "--seeds", 1, "--cut-off", 1, "--background-ratio", 0.5, *names)
    assert set(rungs) == {*compare_losses.GROUPS["ladder"], *compare_losses.GROUPS["losses"], "gst"}
    kernels = {
        name: [o[key] for key in ("post_min", "post_max", "cut_off", "background_ratio")] for name, o in rungs.items()
    }
    assert kernels["gst-published"] == [1, 20, 3, 0.015] and kernels["gst-edge"] == [4, 20, 1, 2]
    assert kernels["gst-round"] == [1, 8, 3, 0.015] and kernels["gst-2px"] == [4, 20, 3, 0.015]
    assert kernels["gst"] == [1, 20, 1, 0.5]
    assert rungs["bl-trans"]["model_name"] == "vgg_trans" and rungs["mse-4"]["sigma"] == 4
    recipe = planned(data, "--seeds", 1, "--rungs", "gst", "gst-near", "--config", ROOT / "configs/sha_near.yml")
    assert {**recipe["gst"], "save_dir": ""} == {**recipe["gst-near"], "save_dir": ""}
