"""Fitting a data set: shares, restarts, kills, the loss table, images and points of all kinds."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, call
from forked import Started
from PIL import Image

from GS2D.fit_dataset import Shard, detect_shard, parse_shard, write_results
from GS2D.fitting import FitConfig, fit_image
from GS2D.gaussians import Gaussians2D
from utils.images import load_image

TREES = ROOT / "examples" / "trees" / "Train"


@pytest.fixture
def data(tmp_path):
    """Eight images cut from the trees, with 0 to 12 points each."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    image = load_image(TREES / "img_0002.jpg")
    for i, count in enumerate((12, 3, 0, 1, 8, 5, 2, 10)):
        left, top = random.integers(0, 400, 2)
        Image.fromarray(image[top : top + 96, left : left + 128]).save(folder / f"IMG_{i:04}.jpg")
        np.save(folder / f"IMG_{i:04}.npy", np.c_[random.uniform((0, 0), (128, 96), (count, 2)), np.full(count, 20)])
    return folder.parent


def fit(data, *options, code=0):
    return call("2dgs_counting_1gs_gsplat.py", "--root-path", data, "--num-epochs", 200, *options, code=code)


def files(data):
    return {path.name: path.read_bytes() for path in (data / "train" / "gs_params").iterdir()}


def test_shares_together_are_the_whole_and_the_table_is_complete(data, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    fit(data)
    out, _ = fit(other, "--shard", "2/2")
    assert "train (share 2 of 2): 4 images" in out and len(list((other / "train" / "gs_params").glob("*.h5"))) == 4
    fit(other, "--shard", "1/2", "--workers", 1)
    assert files(other) == files(data) and len(files(data)) == 9
    with (data / "train" / "gs_params" / "loss_results.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == [f"IMG_{i:04}_gs_params.h5" for i in range(8)] and all(
        len(row) == 3 for row in rows
    )
    assert float(rows[0][1]) > 0 and float(rows[2][1]) == 0  # without points nothing is fitted


def test_interrupted_it_leaves_whole_files_and_says_how_to_go_on(data):
    script = Started("2dgs_counting_1gs_gsplat.py", ["--root-path", data, "--num-epochs", 10000, "--workers", 2])
    while not list(data.glob("train/gs_params/*.h5")):
        assert script.poll() is None
        time.sleep(0.05)
    os.killpg(script.pid, signal.SIGINT)
    _, err = script.communicate()
    assert script.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    assert not list(data.rglob("*.partial*"))
    for path in (data / "train" / "gs_params").glob("*.h5"):
        Gaussians2D.load(path)


def test_other_points_and_other_settings_are_noticed(data):
    assert "--downsample-ratio" in fit(data, "--downsample-ratio", 2, code=2)[1]
    fit(data, "--splits", "train")
    points = np.load(data / "train" / "IMG_0000.npy")
    np.save(data / "train" / "IMG_0000.npy", points + 3)
    out, err = fit(data, "--seed", 5, code=1)
    assert "IMG_0000_gs_params.h5: centres lie up to 3.0 pixels from the points of" in err
    assert "7 of them were fitted with other settings; --overwrite fits them again" in out
    assert "8 to fit" in fit(data, "--overwrite", "--seed", 5)[0]
    np.testing.assert_allclose(
        Gaussians2D.load(data / "train" / "gs_params" / "IMG_0000_gs_params.h5").means, points[:, :2] + 3, rtol=1e-6
    )


def test_rows_of_files_without_losses_are_kept(tmp_path):
    for name, losses in (("a", {}), ("b", {"render_loss": 0.5, "shape_loss": 0})):
        Gaussians2D.from_params(np.ones((2, 8))).save(tmp_path / f"{name}_gs_params.h5", attributes=losses)
    (tmp_path / "c_gs_params.h5").write_text("damaged")
    (tmp_path / "loss_results.csv").write_text("a_gs_params.h5,0.125,0\nb_gs_params.h5,9,9\n")
    write_results(tmp_path)
    assert (tmp_path / "loss_results.csv").read_text() == "a_gs_params.h5,0.125,0\nb_gs_params.h5,0.5,0\n"


def test_a_tolerance_ends_the_fit_early_at_nearly_the_same_loss():
    pytest.importorskip("scipy.io")
    from datasets.raw.annotations import read_ucf

    for stem in ("img_0003", "img_0006"):
        image, points = load_image(TREES / f"{stem}.jpg"), read_ucf(TREES / f"{stem}_ann.mat")
        whole = fit_image(image, points)
        early = fit_image(image, points, FitConfig(tolerance=1e-3))
        assert early.iterations <= 1500 and early.render_loss < 1.005 * whole.render_loss
        again = fit_image(image, points, FitConfig(tolerance=1e-3))
        assert torch.equal(again.gaussians.params, early.gaussians.params)


def test_shares():
    assert parse_shard("2/8") == Shard(1, 8)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(Exception, match="is no share i/n"):
            parse_shard(text)


def test_shares_of_clusters(monkeypatch):
    def set_variables(prefix="", **values):
        for name, value in values.items():
            monkeypatch.setenv(prefix + name, str(value))

    for name in [name for name in os.environ if name.startswith("SLURM")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    assert detect_shard() == Shard(0, 1)
    set_variables("SLURM_", PROCID=5, NTASKS=8, LOCALID=1)
    assert detect_shard() == Shard(5, 8, 1)
    set_variables(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    assert detect_shard() == Shard(1, 2, 1)
    set_variables("SLURM_ARRAY_TASK_", ID=14, MIN=10, COUNT=3, STEP=2)
    assert detect_shard() == Shard(2 * 2 + 1, 6, 1)
