"""The benchmarks on a CPU and on little: their tables have the rows and figures that a GPU's would."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from commands import ROOT, call, errors
from training_runs import Tiny

import train_gs
from benchmarks import bench_training
from benchmarks.bench_losses import published_dm_count
from benchmarks.common import loss_and_gradient, make_data, random_batch
from losses import KERNELS, LOSSES, build_loss

# Stand-ins that import nothing: a run that says what it did, and an evaluation.
RUN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--save-dir") + 1])
folder.mkdir()
figures = {"epoch": 0, "seconds": 0.5, "images_per_second": float(sys.argv[sys.argv.index("--batch-size") + 1])}
(folder / "metrics.jsonl").write_text(json.dumps(figures) + "\\n")
"""
EVALUATION = "print('4 images counted, 4 scored, 0 failed; 25.00 images/s')"


def table(out):
    """The cells of the rows of all Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


def test_losses():
    out, _ = call("benchmarks/bench_losses.py", "--points", 3, 20, "--crop", 64, "--repeats", 1)
    rows = {(row[0], row[1]): row[2:] for row in table(out)}
    for points in ("3", "20"):
        for name in (*LOSSES, *(f"kernel of {name}" for name in KERNELS), "gst, dense", "dm-count as published"):
            assert float(rows[points, name][0]) > 0 and float(rows[points, name][2]) >= 0
    assert re.search(r"cost: gst \| [\d.]+ ms \| 0.5 ms: (ok|missed)", out)


def test_dm_count_as_published_is_the_loss_that_is_trained_with():
    batch, density = random_batch((30,), "dm-count", 512)
    value, gradient = loss_and_gradient(build_loss("dm-count"), density, batch)
    published, slope = loss_and_gradient(lambda d, b: published_dm_count(d, b.points[0]), density, batch)
    torch.testing.assert_close(published, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slope, gradient, rtol=2e-2, atol=2e-2 * float(gradient.abs().max()))


def test_fitting():
    out, _ = call("benchmarks/bench_splat.py", "--gaussians", 50, "--atlas", 1, "--repeats", 1)
    rows = {row[1] if row[1] == "native" else row[0]: row for row in table(out)}
    assert float(rows["native"][3]) > 0 and float(rows["1 images, reference"][1]) > 0


def test_loading():
    sizes = "--sides", 1024, "--images", 2, "--points", 20, "--processes", 1, "--seconds", 0.1, "--steps", 5
    out, _ = call("benchmarks/bench_loading.py", *sizes)
    width, core, processes, waiting = table(out)[-1]
    assert width == "1024" and float(core) > 0 and float(processes) > 0 and waiting.endswith("%")


def test_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(bench_training, "build_model", Tiny)
    for name, text in (("TRAIN", RUN), ("TEST", EVALUATION)):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(bench_training, name, tmp_path / f"{name}.py")
    few, many = (make_data(tmp_path / str(count), count, 192, 10) for count in (4, 6))
    fixed, lengths, build = ["--backbone-weights", "none", "--device", "cpu"], [], train_gs.CropLoader
    monkeypatch.setattr(
        train_gs, "CropLoader", lambda data, *rest, **named: lengths.append(len(data)) or build(data, *rest, **named)
    )
    bench_training.steps(tmp_path / "run", [("vgg", 2, 64, [], 1)], fixed, few, many, loaders=0, times=2)
    assert lengths == [4, 6]  # the rate with loading processes is that of many
    assert all(bench_training.MANY >= 30 * batch for _, batch, *_ in bench_training.STEPS)
    bench_training.whole_runs(tmp_path, fixed, minutes=0.02, loaders=0)
    bench_training.evaluation(few, tmp_path, "cpu")
    rows = table(capsys.readouterr().out)
    names = "step", "crops a second", "a run of 1 s", "four runs side by side", "test.py", "test.py"
    assert tuple(row[0].partition(",")[0] for row in rows) == names
    assert rows[1][2] == "1: ok" and rows[4][2] == "20: ok" and rows[5][2] == "30: missed"
    assert rows[3][1:] == ["32 crops a second, one at batch 32 32", "as many: ok"]
    step, alone, ratio = map(float, re.fullmatch(r"([\d.]+) ms .* alone ([\d.]+): ([\d.]+) times", rows[0][1]).groups())
    assert ratio == pytest.approx(step / alone, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_one_line_says_so():
    _, err = call("benchmarks/bench_losses.py", "--device", "cuda", code=2)
    assert "--device cuda: PyTorch sees no CUDA GPU here; use --device cpu" in errors(err)[0]
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: PyTorch {torch.__version__} sees no CUDA GPU here; these checks need one\n"


def test_wrong_numbers():
    _, err = call("benchmarks/bench_losses.py", "--points", 0, code=2)
    assert "--points: 0 is impossible" in errors(err)[0]
