"""The data set's script on a machine with GPUs, in whose place the reference draws."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from commands import call, errors
from PIL import Image
from test_atlas import crowd

from GS2D import backends, fit_dataset
from GS2D.fitting import fit_side_by_side
from GS2D.gaussians import Gaussians2D

SCRIPT = "2dgs_counting_1gs_gsplat.py"


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as the script can tell."""
    chosen = []
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(backends, "gsplat_problem", lambda: None)

    def draw_by_reference(sizes, jobs, load, config, backend, *, workers):
        assert backend == "gsplat"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # torch.optim asks the GPU otherwise
        return fit_side_by_side(sizes, jobs, load, config, "reference", workers=workers)

    monkeypatch.setattr(fit_dataset, "fit_side_by_side", draw_by_reference)
    return chosen


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for i, (image, points) in enumerate(zip(*crowd())):
        Image.fromarray(image).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", points)
    return folder.parent


def test_a_data_set_goes_through_the_atlas(data, gpus):
    out, _ = call(SCRIPT, "--root-path", data, "--num-epochs", 12)
    assert out.splitlines()[:2] == [
        "backend gsplat: NVIDIA H200 takes many images side by side",
        "train: 5 images, 0 already there, 5 to fit (gsplat)",
    ]
    assert gpus == [0]
    files = sorted((data / "train" / "gs_params").glob("*.h5"))
    assert [len(Gaussians2D.load(path)) for path in files] == [12, 7, 9, 0, 5]
    with (data / "train" / "gs_params" / "loss_results.csv").open() as file:
        assert [row[0] for row in csv.reader(file)] == [path.name for path in files]
    got = Gaussians2D.load(files[0])
    np.testing.assert_array_equal(got.means, np.load(data / "train" / "0.npy").astype(np.float32))
    files[0].unlink()
    again = "--root-path", data, "--num-epochs", 12, "--backend", "reference"
    assert "4 already there, 1 to fit" in call(SCRIPT, *again)[0]
    np.testing.assert_allclose(Gaussians2D.load(files[0]).params, got.params, rtol=0, atol=1e-3)


def test_what_cannot_be_fitted_is_named_and_the_others_are(data, gpus, monkeypatch):
    folder = data / "train"
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])  # the header is there, the pixels are not
    (folder / "1.png").write_bytes(b"no picture")
    np.save(folder / "2.npy", np.array([[1, 2], [np.nan, 3]]))
    _, err = call(SCRIPT, "--root-path", data, "--num-epochs", 5, code=1)
    lines = errors(err)
    assert lines.pop() == "error: 3 of 5 failed; mend them and run the same command again" and len(lines) == 3
    for line, name in zip(sorted(lines), ("0.png: cannot read this image", "1.png: cannot read", "2.npy: row 1 is")):
        assert line.startswith(f"error: {folder}/{name}")
    assert sorted(path.name for path in (folder / "gs_params").glob("*.h5")) == ["3_gs_params.h5", "4_gs_params.h5"]


def test_torchrun_gives_each_process_its_gpu(data, gpus, monkeypatch):
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    out, _ = call(SCRIPT, "--root-path", data, "--num-epochs", 2)
    assert gpus == [1] and "train (share 2 of 2): 2 images" in out


def test_the_device_may_be_the_cpu_and_must_exist(data, gpus):
    out, _ = call(SCRIPT, "--root-path", data, "--num-epochs", 2, "--device", "cpu")
    assert out.startswith("backend native: gsplat does not run on a CPU\n") and gpus == []
    _, err = call(SCRIPT, "--root-path", data, "--device", "cpu", "--backend", "gsplat", code=1)
    assert errors(err) == ["error: backend: gsplat does not run on a CPU; use 'native' or 'reference'"]
    _, err = call(SCRIPT, "--root-path", data, "--device", "0,1", code=1)
    assert errors(err) == ["error: --device 0,1: a process takes one GPU; start several with torchrun --nproc-per-node"]
    _, err = call(SCRIPT, "--root-path", data, "--device", "7", code=1)
    assert errors(err) == ["error: --device 7: this machine has 2 GPUs, no GPU 7; try --device cpu"]
