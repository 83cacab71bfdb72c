"""From raw data to the published table: what is missing, the commands, the whole way with stand-in data, the numbers."""

from __future__ import annotations

import re
import subprocess

import commands
import pytest
from commands import ROOT, call, errors

from scripts import reproduce_tables
from utils.files import list_images

SMALL = (
    *("--device", "cpu", "--preprocess-options", "--min-size 64 --max-size 128 --workers 1"),
    *("--splat-options", "--num-epochs 5 --workers 1"),
    *("--train-options", "--epochs 1 --crop-size 64 --backbone-weights none --num-workers 0"),
)


def reproduce(*options, code=0):
    return call("scripts/reproduce_tables.py", *options, code=code)


def table(runs):
    return {(row["data set"], row["network"]): row for row in commands.table(runs / "reproduction.csv")}


def test_missing_data_are_named_with_what_to_put_where(tmp_path):
    _, err = reproduce("--data", tmp_path / "data", "--checkpoint", tmp_path / "x.pth", code=2)
    assert "name the data set" in errors(err)[0]
    _, err = reproduce("--data", tmp_path / "data", "--runs", tmp_path / "runs", code=1)
    remedy = "no such folder; unpack UCF-QNRF (https://www.crcv.ucf.edu/data/ucf-qnrf/) there"
    assert errors(err) == [f"error: {tmp_path / 'data' / 'UCF-QNRF_ECCV18'}: {remedy}"] and not list(tmp_path.iterdir())
    assert "'qnfr': no such data set" in errors(reproduce("qnfr", code=2)[1])[0]


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    out, _ = reproduce("vgg", "qnrf", "--data", data, "--runs", runs, "--train-options", "--epochs 3", "--dry-run")
    prepared = data / "UCF-Train-Val-Test"
    assert out.splitlines() == [
        f"python preprocess_dataset_ucf.py --input-dataset-path {data / 'UCF-QNRF_ECCV18'} "
        f"--output-dataset-path {prepared}",
        f"python 2dgs_counting_1gs_gsplat.py --root-path {prepared}",
        f"python GS2D/process_gaussians.py --root-path {prepared}",
        f"python train_gs.py --model-name vgg --dataset qnrf --data-dir {prepared} --save-dir {runs / 'qnrf_vgg'} "
        "--device auto --epochs 3",
        f"python test.py --save-path {runs / 'qnrf_vgg' / 'best_model.pth'} --model-name vgg --data-dir {prepared} "
        f"--device auto --split test --out {runs / 'qnrf_vgg' / 'test'}",
    ]
    out, _ = reproduce("--data", data, "--runs", runs, "--dry-run")
    assert out.count("train_gs.py") == 16 and out.count("--nwpu-submission") == 2
    out, _ = reproduce("shb", "dm-count", "gst", "--dry-run")
    assert out.count("train_gs.py") == 3 and "GS2D/process_gaussians.py" in out
    out, _ = reproduce("jhu", "--data", data, "--checkpoint", "a.tar", "--dry-run")
    assert [line.split()[1] for line in out.splitlines()] == ["preprocess_dataset_jhu.py", "test.py"]
    assert "--save-path a.tar" in out and "--model-name" not in out and not list(tmp_path.iterdir())


def test_published_lists_of_qnrf_are_used_where_they_lie(tmp_path):
    source = tmp_path / "UCF-QNRF_ECCV18"
    source.mkdir()
    for name in ("train.txt", "val.txt"):
        (source / name).touch()
    out, _ = reproduce("qnrf", "vgg", "--data", tmp_path, "--dry-run")
    assert f"--train-list {source / 'train.txt'} --val-list {source / 'val.txt'}" in out


def draw(data, name):
    """Crowds of six images in the layout of a data set, where its raw data are looked for."""
    size = ("--height", 64, "--width", 80, "--min-people", 2, "--max-people", 8, "--workers", 1)
    call(
        "datasets/synthetic.py",
        "--layout",
        name,
        "--out",
        data / reproduce_tables.SOURCES[name].raw,
        "--images",
        6,
        *size,
    )


def test_from_raw_data_to_the_table(tmp_path, here):
    draw(tmp_path / "data", "qnrf")
    mean, root = reproduce_tables.PUBLISHED["qnrf"]["gst"]
    options = ("--data", tmp_path / "data", "--runs", tmp_path, *SMALL)
    out, _ = reproduce("qnrf", "vgg", *options)
    scripts = [command[0] for command, _ in here]
    assert scripts[1:] == ["2dgs_counting_1gs_gsplat.py", "GS2D/process_gaussians.py", "train_gs.py", "test.py"]
    rows = table(tmp_path)
    row = rows["UCF-QNRF", "vgg"]
    mae, mse = map(float, re.search(r"images?: MAE ([\d.]+), MSE ([\d.]+)", here[-1][1]).groups())
    assert row["measured MAE / MSE"] == f"{mae:.1f} / {mse:.1f}" and row["split"] == "test"
    assert row["difference"] == f"{mae - mean:+.1f} / {mse - root:+.1f}"
    assert rows["UCF-QNRF", "vgg_trans"]["measured MAE / MSE"] == "not measured yet" and len(rows) == 16
    assert "does not name the backbone" in out and f"{mean} / {root}" in out
    here.clear()
    assert reproduce("qnrf", "vgg", *options)[0] == out and len(here) == 4  # evaluated after the checkpoint was written
    for (command, text), done in zip(here, ("nothing to do", "0 to fit", "nothing to do", "nothing to do")):
        assert done in text, command
    checkpoint = tmp_path / "qnrf_vgg" / "best_model.pth"
    reproduce("qnrf", *options, "--checkpoint", checkpoint)
    checked = table(tmp_path)
    assert checked["UCF-QNRF", str(checkpoint)]["measured MAE / MSE"] == row["measured MAE / MSE"]
    assert checked["UCF-QNRF", "vgg"] == row


def test_nwpu_is_measured_on_val_and_gets_a_submission_for_test(tmp_path, here):
    data = tmp_path / "data"
    draw(data, "nwpu")
    out, _ = reproduce("nwpu", "vgg", "--data", data, "--runs", tmp_path, *SMALL)
    row = table(tmp_path)["NWPU-Crowd", "vgg"]
    assert row["split"] == "val" and row["difference"] == "not comparable" and "/" in row["measured MAE / MSE"]
    lines = [line.split() for line in (tmp_path / "nwpu_vgg" / "submission.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == [path.stem for path in list_images(data / "NWPU-Train-Val-Test" / "test")]
    assert all(float(count) >= 0 for _, count in lines) and "test annotations are not public" in out


def test_losses_on_shanghaitech_stand_beside_their_published_numbers(tmp_path, here):
    """They need no Gaussians."""
    draw(tmp_path / "data", "sha")
    reproduce("sha", "bl", "--data", tmp_path / "data", "--runs", tmp_path, *SMALL)
    lines = [command for command, _ in here]
    assert [command[0] for command in lines] == ["preprocess_dataset_sh.py", "train_gs.py", "test.py"]
    assert lines[0][-8:-6] == ["--part", "A"] and str(ROOT / "configs" / "bl_sha.yml") in lines[1]
    rows = table(tmp_path)
    row = rows["ShanghaiTech A", "vgg, bl"]
    assert row["published MAE / MSE (test)"] == "62.8 / 101.8"
    mae = float(row["measured MAE / MSE"].partition(" /")[0])
    assert float(row["difference"].partition(" /")[0]) == pytest.approx(mae - 62.8, abs=0.11)
    assert rows["ShanghaiTech B", "vgg, gloss"]["published MAE / MSE (test)"] == "7.3 / 11.7"


def test_differences_to_the_published_numbers(tmp_path):
    for name, split, rows in (("jhu_vgg_trans", "test", "a,10,13,3\nb,20,16,-4\n"), ("nwpu_vgg", "val", "a,1,2,1\n")):
        results = tmp_path / name / split / "results.csv"
        results.parent.mkdir(parents=True)
        results.write_text(f"image,truth,predicted,error\n{rows}")
    text = reproduce_tables.report(reproduce_tables.all_rows(tmp_path), tmp_path)
    # (3 + 4) / 2 = 3.5 and sqrt((9 + 16) / 2) = 3.54, beside 53.9 and 225.4
    assert "| JHU-Crowd++ | vgg_trans | test | 3.5 / 3.5 | 53.9 / 225.4 | -50.4 / -221.9 |\n" in text
    assert "| JHU-Crowd++ | vgg | test | not measured yet | 53.9 / 225.4 |  |\n" in text
    assert "| NWPU-Crowd | vgg | val | 1.0 / 1.0 | 74.4 / 306.2 | not comparable |\n" in text
    assert (tmp_path / "reproduction.md").read_text() == text


def test_a_name_that_is_no_experiment_is_refused():
    command = ["bash", str(ROOT / "scripts" / "experiments.sh"), "tables"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: 'tables' is no experiment; name compare_losses, ")
