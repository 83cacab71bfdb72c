"""From raw data to the published table: what is missing, the commands, and the whole way with stand-in data."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from commands import ROOT, call, table

QUICK = {
    "preprocess": "--min-size 64 --max-size 128 --workers 1",
    "2dgs": "--num-epochs 5 --workers 1",
    "GS2D": "",
    "scripts": "--epochs 1 --crop-size 64 --backbone-weights none --num-workers 0 --device cpu",
}
# In place of the script that installs: commands are printed.
SETUP = """cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "error: $1" >&2; exit 1; }
python=echo
"""


@pytest.fixture
def project(tmp_path):
    """A folder with the shell script, which prints its commands."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "reproduce_tables.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "venv.sh").write_text(SETUP)
    return tmp_path


def reproduce(project, *words, code=0):
    """The commands of a reproduction, or what it says on stderr."""
    command = ["bash", str(project / "scripts" / "reproduce_tables.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout.splitlines()


def test_what_is_wrong_is_said_in_one_line(project):
    assert reproduce(project, "qnfr", code=2) == "error: 'qnfr' is no data set; name qnrf, jhu, nwpu, sha or shb\n"
    remedy = "no such folder; unpack what https://www.crcv.ucf.edu/data/ucf-qnrf/ offers there"
    assert reproduce(project, "qnrf", "vgg", code=1) == f"error: data/UCF-QNRF_ECCV18: {remedy}\n"
    command = ["bash", str(ROOT / "scripts" / "experiments.sh"), "tables"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: 'tables' is no experiment; name compare_losses, ")


def test_the_commands(project):
    (project / "data" / "UCF-QNRF_ECCV18").mkdir(parents=True)
    prepared = "data/UCF-Train-Val-Test"
    preprocess = f"preprocess_dataset_ucf.py --input-dataset-path data/UCF-QNRF_ECCV18 --output-dataset-path {prepared}"
    fixed = "--dataset qnrf --published qnrf --recipes --split test --seeds 1 --out runs/qnrf"
    assert reproduce(project, "qnrf", "vgg", "bl", "--seeds", "3", "--minutes", "60") == [
        preprocess,
        f"2dgs_counting_1gs_gsplat.py --root-path {prepared}",
        f"GS2D/process_gaussians.py --root-path {prepared}",
        f"scripts/compare_losses.py {prepared} --losses vgg bl {fixed} --seeds 3 --minutes 60",
    ]
    for name in ("train.txt", "val.txt"):
        (project / "data" / "UCF-QNRF_ECCV18" / name).touch()
    lists = "--train-list data/UCF-QNRF_ECCV18/train.txt --val-list data/UCF-QNRF_ECCV18/val.txt"
    assert reproduce(project, "qnrf", "--checkpoint", "a.tar", "--device", "0") == [
        f"{preprocess} {lists}",
        f"test.py --save-path a.tar --data-dir {prepared} --split test --out runs/qnrf/released --device 0",
    ]
    (project / "data" / "NWPU-Crowd").mkdir()
    assert "--losses vgg vgg_trans bl dm-count gloss" in reproduce(project, "nwpu")[-1]
    assert "--split val" in reproduce(project, "nwpu", "vgg")[-1]
    (project / "data" / "ShanghaiTech").mkdir()
    part, training = reproduce(project, "shb", "dm-count")  # needs no Gaussians
    assert part.endswith("--part B") and "--losses dm-count --dataset shb --published shb" in training


def test_from_raw_data_to_the_table(project, here):
    raw = project / "data" / "UCF-QNRF_ECCV18"
    size = ("--height", 64, "--width", 80, "--min-people", 2, "--max-people", 8, "--workers", 1)
    call("datasets/synthetic.py", "--layout", "qnrf", "--out", raw, "--images", 6, *size)
    for line in reproduce(project, "qnrf", "vgg", "bl"):
        script, *words = shlex.split(line)
        words = [str(project / word) if word.startswith(("data/", "runs/")) else word for word in words]
        quick = next(options for name, options in QUICK.items() if script.startswith(name))
        call(script, *words, *quick.split())
    gst, bl, _ = table(project / "runs" / "qnrf" / "table.csv")
    assert (gst["loss"], gst["published MAE / MSE"], bl["published MAE / MSE"]) == (
        "vgg",
        "80.7 / 131.1",
        "88.7 / 154.8",
    )
    assert float(gst["MAE"]) > 0 and float(bl["MSE"]) > 0
    assert "does not name the backbone" in (project / "runs" / "qnrf" / "table.md").read_text()
    assert str(ROOT / "configs" / "bl.yml") in here[2][0]
