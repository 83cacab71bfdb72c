"""From raw data to the published table: what is missing, the commands, the whole way with stand-in data, the numbers."""

from __future__ import annotations

import json
import re
import subprocess

from commands import ROOT, call, errors, table

from scripts import reproduce_tables
from utils.files import list_images

SMALL = (
    *("--device", "cpu", "--preprocess-options", "--min-size 64 --max-size 128 --workers 1"),
    *("--splat-options", "--num-epochs 5 --workers 1"),
    *("--train-options", "--epochs 1 --crop-size 64 --backbone-weights none --num-workers 0"),
)


def reproduce(*options, code=0):
    return call("scripts/reproduce_tables.py", *options, code=code)


def rows(runs):
    return {(row["data set"], row["network and loss"]): row for row in table(runs / "reproduction.csv")}


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
    prepared, run = data / "UCF-Train-Val-Test", runs / "qnrf_vgg_gst_seed4073"
    assert out.splitlines() == [
        f"python preprocess_dataset_ucf.py --input-dataset-path {data / 'UCF-QNRF_ECCV18'} "
        f"--output-dataset-path {prepared}",
        f"python 2dgs_counting_1gs_gsplat.py --root-path {prepared}",
        f"python GS2D/process_gaussians.py --root-path {prepared}",
        f"python train_gs.py --model-name vgg --dataset qnrf --data-dir {prepared} --device auto --epochs 3 "
        f"--seed 4073 --save-dir {run} --overwrite",
        f"python test.py --save-path {run / 'best_model.pth'} --data-dir {prepared} --split test "
        f"--device auto --window 512 --out {run / 'test'}",
    ]
    out, _ = reproduce("--data", data, "--runs", runs, "--dry-run")
    assert out.count("train_gs.py") == 16 and out.count("--nwpu-submission") == 2
    out, _ = reproduce("shb", "dm-count", "gst", "--seeds", 2, "--data", data, "--runs", runs, "--dry-run")
    assert out.count("train_gs.py") == 6 and "GS2D/process_gaussians.py" in out
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.tar").touch()
    out, _ = reproduce("jhu", "--data", data, "--runs", runs, "--checkpoint", tmp_path / "a.tar", "--dry-run")
    assert [line.split()[1] for line in out.splitlines()] == ["preprocess_dataset_jhu.py", "test.py"]
    assert f"--save-path {tmp_path / 'a.tar'}" in out and not runs.exists()


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
    options = ("--data", tmp_path / "data", "--runs", tmp_path, *SMALL)
    out, _ = reproduce("qnrf", "vgg", *options)
    scripts = [command[0] for command, _ in here]
    assert scripts[1:] == ["2dgs_counting_1gs_gsplat.py", "GS2D/process_gaussians.py", "train_gs.py", "test.py"]
    row = rows(tmp_path)["UCF-QNRF", "vgg_gst"]
    mae, mse = map(float, re.search(r"images?: MAE ([\d.]+), MSE ([\d.]+)", here[-1][1]).groups())
    assert row["measured MAE / MSE"] == f"{mae:.1f} / {mse:.1f}" and row["split"] == "test"
    assert row["published MAE / MSE (test)"] == "80.7 / 131.1" and "does not name the backbone" in out
    here.clear()
    table = out[out.index("| data set") :]
    assert table in reproduce("qnrf", "vgg", *options)[0] and not here
    reproduce("qnrf", *options, "--checkpoint", tmp_path / "qnrf_vgg_gst_seed4073" / "best_model.pth")
    assert [command[0] for command, _ in here] == ["preprocess_dataset_ucf.py", "test.py"]
    checked = rows(tmp_path)
    assert checked.pop(("UCF-QNRF", "vgg_gst")) == row
    assert [row["measured MAE / MSE"] for row in checked.values()] == [f"{mae:.1f} / {mse:.1f}"]


def test_nwpu_is_measured_on_val_and_gets_a_submission_for_test(tmp_path, here):
    data = tmp_path / "data"
    draw(data, "nwpu")
    out, _ = reproduce("nwpu", "vgg", "--data", data, "--runs", tmp_path, *SMALL)
    row = rows(tmp_path)["NWPU-Crowd", "vgg_gst"]
    assert row["split"] == "val" and "/" in row["measured MAE / MSE"] and "test annotations are not public" in out
    submission = tmp_path / "nwpu_vgg_gst_seed4073" / "submission.txt"
    lines = [line.split() for line in submission.read_text().splitlines()]
    assert [name for name, _ in lines] == [path.stem for path in list_images(data / "NWPU-Train-Val-Test" / "test")]
    assert all(float(count) >= 0 for _, count in lines)


def test_losses_on_shanghaitech_stand_beside_their_published_numbers(tmp_path, here):
    """They need no Gaussians."""
    draw(tmp_path / "data", "sha")
    reproduce("sha", "bl", "--data", tmp_path / "data", "--runs", tmp_path, *SMALL)
    lines = [command for command, _ in here]
    assert [command[0] for command in lines] == ["preprocess_dataset_sh.py", "train_gs.py", "test.py"]
    assert lines[0][-8:-6] == ["--part", "A"] and str(ROOT / "configs" / "bl_sha.yml") in lines[1]
    assert rows(tmp_path)["ShanghaiTech A", "vgg_bl"]["published MAE / MSE (test)"] == "62.8 / 101.8"


def test_seeds_are_one_row(tmp_path):
    for folder, mae in (("jhu_vgg_gst_seed4073", 50), ("jhu_vgg_gst_seed4074", 52), ("bl_seed4073", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "result.json").write_text(json.dumps({"loss": "gst", "mae": mae, "mse": 2 * mae}))
    text = reproduce_tables.report(tmp_path)
    (line,) = [line for line in text.splitlines() if "vgg_gst" in line]
    assert line == "| JHU-Crowd++ | vgg_gst | test | 2 | 51.0 ± 1.4 / 102.0 ± 2.8 | 53.9 / 225.4 |"
    assert (tmp_path / "reproduction.md").read_text() == text and len(rows(tmp_path)) == 1


def test_a_name_that_is_no_experiment_is_refused():
    command = ["bash", str(ROOT / "scripts" / "experiments.sh"), "tables"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: 'tables' is no experiment; name compare_losses, ")
