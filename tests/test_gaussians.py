"""The file of fitted Gaussians, and cleaning."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import call

from GS2D.gaussians import Gaussians2D, read_file
from GS2D.process_gaussians import clean

GOLDEN = np.load(Path(__file__).parent / "data" / "misc.npz")
NAMES = sorted({key.split("/")[1] for key in GOLDEN if key.startswith("clean/")})


def gaussians(count=5, seed=0):
    random = np.random.default_rng(seed)
    params = random.uniform(1, 9, (count, 8)).astype(np.float32)
    params[:, 5:] /= 10
    return Gaussians2D.from_params(params)


def test_save_and_load_keep_every_bit(tmp_path):
    original = gaussians()
    original.save(tmp_path / "IMG_1_gs_params.h5", attributes={"render_loss": 0.25})
    loaded = Gaussians2D.load(tmp_path / "IMG_1_gs_params.h5")
    assert torch.equal(loaded.params, original.params) and loaded.params.dtype == torch.float32
    assert os.listdir(tmp_path) == ["IMG_1_gs_params.h5"]
    with h5py.File(tmp_path / "IMG_1_gs_params.h5") as file:
        assert list(file) == ["params"] and file["params"].shape == (5, 8) and file["params"].compression == "gzip"
        assert file["params"].attrs["render_loss"] == 0.25


@pytest.mark.parametrize("shape", [(0,), (0, 8), (0, 0)])
def test_an_empty_file_of_any_shape_loads(tmp_path, shape):
    write(tmp_path / "x.h5", params=np.zeros(shape, np.float32))
    Gaussians2D.load(tmp_path / "x.h5").save(tmp_path / "y.h5")
    assert (
        Gaussians2D.load(tmp_path / "x.h5").params.shape == Gaussians2D.load(tmp_path / "y.h5").params.shape == (0, 8)
    )


def test_a_released_file_with_nan_scales_loads(tmp_path):
    params = gaussians().params.numpy().astype(np.float64)
    params[2, 2] = np.nan
    write(tmp_path / "x.h5", params=params)
    loaded = Gaussians2D.load(tmp_path / "x.h5")
    assert torch.isnan(loaded.scales).nonzero().tolist() == [[2, 0]] and loaded.params.dtype == torch.float32


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_truncated(path):
    gaussians(500).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: write(path, gaussians=np.zeros((3, 8))), "no dataset 'params', but 'gaussians'"),
        (lambda path: write(path, params=np.zeros((3, 7))), "shape \\[3, 7\\], expected \\[N, 8\\]"),
        (lambda path: write(path, params=np.full((3, 8), b"x")), "'params' holds"),
        (write_truncated, "not a readable file of fitted Gaussians"),
        (lambda path: path.write_bytes(b"no h5"), "not a readable file of fitted Gaussians"),
        (lambda path: gaussians(5).save(path, fitted=gaussians(4)), "'fitted' has 4 rows, 'params' 5"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, spoil, message):
    path = tmp_path / "IMG_7_gs_params.h5"
    spoil(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Gaussians2D.load(path)
    assert str(path) in str(error.value) and "2dgs_counting_1gs_gsplat.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    gaussians(3).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="x.h5: cannot write this file \\(No space left on device\\)"):
        gaussians(4).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]


@pytest.mark.parametrize("name", NAMES)
def test_clean_gives_the_released_result(name):
    before, after = GOLDEN[f"clean/{name}/before"], GOLDEN[f"clean/{name}/after"]
    cleaned, changed = clean(before)
    np.testing.assert_allclose(cleaned, after, rtol=0, atol=1e-4)
    assert changed == (np.abs(before - after).max(axis=1, initial=0) > 0).sum() if before.size else changed == 0
    again, changed = clean(cleaned)
    assert changed == 0
    np.testing.assert_array_equal(again, cleaned)


def test_clean_makes_distorted_gaussians_round():
    params = np.tile(np.float32([5, 6, 3, 3, 0.5, 0.1, 0.2, 0.3]), (4, 1))
    params[1, 2:4], params[2, 2:4], params[3, 2:4] = (4, 7), (3, 4.5), (np.nan, 2)
    cleaned, changed = clean(params)
    assert changed == 1 and cleaned[1].tolist() == pytest.approx([5, 6, 4, 4, 0.5, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal(cleaned[[0, 2, 3]], params[[0, 2, 3]])
    assert params[1, 3] == 7  # the argument is left alone
    assert isinstance(clean(torch.from_numpy(params))[0], torch.Tensor)
    with pytest.raises(ValueError, match="max_ratio: 0.5"):
        clean(params, max_ratio=0.5)


CLEAN = "GS2D/process_gaussians.py"


def test_cleaning_a_file_keeps_what_was_fitted_and_happens_once(tmp_path):
    path = tmp_path / "IMG_1_gs_params.h5"
    original = gaussians(40)
    original.save(path, attributes={"render_loss": 0.5, "iterations": 3})
    assert "1 files changed" in call(CLEAN, "--gs-dir", tmp_path)[0]
    cleaned, fitted, attributes = read_file(path)
    assert torch.equal(fitted.params, original.params) and attributes == {"render_loss": 0.5, "iterations": 3}
    ratio = cleaned.scales.max(dim=1).values / cleaned.scales.min(dim=1).values
    assert ratio.max() <= 1.5
    before = path.read_bytes(), path.stat().st_mtime_ns
    distorted = int(clean(original.params)[1])
    out, _ = call(CLEAN, "--gs-dir", tmp_path)
    assert out == f"1 files, 40 Gaussians: {distorted} were fitted distorted; nothing to do\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ratios", [(1, 3, 2), (1.2, 100)])
def test_a_ratio_does_not_depend_on_those_before(tmp_path, ratios):
    """Of a file of the authors, which has ``params`` alone and NaN scales, too: its original is never lost."""
    params = gaussians(40).params.numpy()
    params[3, 2] = np.nan
    for name, used in (("direct", ratios[-1:]), ("detour", ratios)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "IMG_1_gs_params.h5", params=params)
        for ratio in used:
            call(CLEAN, "--gs-dir", tmp_path / name, "--max-ratio", ratio)
    direct, detour = (read_file(tmp_path / name / "IMG_1_gs_params.h5") for name in ("direct", "detour"))
    expected, distorted = clean(params, ratios[-1])
    for cleaned, fitted, _ in (direct, detour):
        np.testing.assert_array_equal(cleaned.params, expected)
        assert (fitted is None) == (not distorted)
        assert fitted is None or np.array_equal(fitted.params, params, equal_nan=True)
