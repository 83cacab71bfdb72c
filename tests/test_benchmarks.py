"""The benchmarks on a CPU and on little: their tables have the rows and figures that a GPU's would."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT, call, errors
from training_runs import Tiny

import train_gs
from benchmarks import bench_loading, bench_losses, bench_splat, bench_training
from losses import KERNELS, LOSSES


def table(out):
    """The cells of the rows of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


def test_losses(monkeypatch):
    for name, value in (("POINTS", (3, 20)), ("CROP", 64), ("REPEATS", 1)):
        monkeypatch.setattr(bench_losses, name, value)
    out, _ = call("benchmarks/bench_losses.py")
    rows = {(row[0], row[1]): row[2:] for row in table(out)}
    for points in ("3", "20"):
        for name in (*LOSSES, *(f"kernel of {name}" for name in KERNELS), "gst, dense"):
            assert float(rows[points, name][0]) > 0 and float(rows[points, name][2]) >= 0


def test_fitting(monkeypatch, capsys):
    monkeypatch.setattr(bench_splat, "SIZES", {50: (384, 512)})
    monkeypatch.setattr(bench_splat, "TOGETHER", (1, 2))
    *_, native, reference = table(call("benchmarks/bench_splat.py")[0])
    assert 0 < float(native[3]) < float(reference[3])
    bench_splat.side_by_side(50, "reference", 2)
    rows = {row[0]: row for row in table(capsys.readouterr().out)}
    assert float(rows["1 images, reference"][1]) > 0 and float(rows["2 images, reference"][1]) > 0


def test_loading(monkeypatch):
    for name, value in (("WIDTHS", (1024,)), ("IMAGES", 2), ("POINTS", 20), ("PROCESSES", (1,)), ("SECONDS", 0.1)):
        monkeypatch.setattr(bench_loading, name, value)
    width, core, loader = table(call("benchmarks/bench_loading.py")[0])[-1]
    assert width == "1024" and float(core) > 0 and float(loader) > 0


def test_training(monkeypatch):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(bench_training, "build_model", Tiny)
    small = {"STEPS": [("vgg", 2, 64, [])], "PICTURES": (6, 192, 10), "LOADERS": 0}
    for name, value in small.items():
        monkeypatch.setattr(bench_training, name, value)
    what, whole, alone, ratio, *rates = table(call("benchmarks/bench_training.py")[0])[-1]
    assert what == "vgg 2 x 64" and all(float(rate) > 0 for rate in rates)
    assert float(ratio) == pytest.approx(float(whole.split()[0]) / float(alone), rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_one_line_says_so():
    _, err = call("benchmarks/bench_losses.py", "--device", "cuda", code=2)
    assert "--device cuda: PyTorch sees no CUDA GPU here; use --device cpu" in errors(err)[0]
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: PyTorch {torch.__version__} sees no CUDA GPU here; these checks need one\n"
