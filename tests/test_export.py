"""Networks as ONNX and safetensors, beside PyTorch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, call, errors
from PIL import Image

from models import load_model
from models.export import compare, traceable_in_degree_index
from models.vgg_trans import in_degree_index
from utils.evaluation import count
from utils.images import load_image
from utils.pixels import normalise, to_planes

INSTALLED = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "safetensors"))
pytestmark = pytest.mark.skipif(not INSTALLED, reason="pip install -r requirements-export.txt")


def export(run, form, *options, code=0):
    path = run / f"exported.{form}"
    return path, *call("models/export.py", "--save-path", run, "--format", form, "--out", path, *options, code=code)


@pytest.mark.parametrize("name", ["vgg", "vgg_trans"])
def test_onnx_agrees_at_sizes_it_was_not_traced_with(golden_runs, tmp_path, monkeypatch, name):
    """And the example counts with it as the evaluation does."""
    import onnx
    import onnxruntime

    monkeypatch.setattr("models.export.CHECKED", ((64, 96), (112, 64), (32, 48)))
    run = golden_runs / "runs" / f"qnrf_{name}"
    path, out, _ = export(run, "onnx")
    assert len(out.splitlines()) == 4 and f"{path}: {name}, onnx, " in out
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["gst"])["model_name"] == name
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = load_model(run)[0]
    for batch, height, width in ((1, 80, 80), (2, 48, 128), (3, 32, 16)):
        image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected = network(image).density
        (found,) = session.run(None, {"image": image.numpy()})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.max()))

    pixels, photo = np.random.default_rng(0).integers(0, 255, (9, 60, 3), dtype=np.uint8), tmp_path / "photo.png"
    Image.fromarray(pixels).resize((531, 79)).save(photo)  # two windows, sides that are no multiples of 16
    command = [sys.executable, ROOT / "examples" / "onnx_count.py", path, photo]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    where, _, number = done.stdout.strip().rpartition(": ")
    expected = count(network, normalise(to_planes(load_image(photo))))
    assert where.endswith("photo.png") and float(number) == pytest.approx(expected, rel=1e-4)


def test_safetensors_is_a_checkpoint(golden_runs, tmp_path):
    run = golden_runs / "runs" / "qnrf_vgg_trans"
    path, out, _ = export(run, "safetensors")
    network, said = load_model(path)
    assert said == {"model_name": "vgg_trans", "topk": 0.3, "usenum": 18}
    expected = torch.load(run / "best_model.pth", weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.safetensors: not a readable PyTorch weights file"):
        load_model(cut)


@pytest.mark.parametrize("topk", [0.3, 1.0, 0.29, 0.001])
@pytest.mark.parametrize("length", [1, 2, 10, 100, 130])
def test_the_traceable_graph_is_the_graph(topk, length):
    """Also where topk L is whole but for rounding: int(0.29 * 100) is 28."""
    tokens = torch.randn(2, length, 512, generator=torch.Generator().manual_seed(length))
    assert torch.equal(traceable_in_degree_index(tokens, topk, 18), in_degree_index(tokens, topk, 18))


def test_a_difference_is_not_written_but_that_of_another_graph(golden_runs):
    """A token at the border of two indexes: the network is held to what it says with the other's graph."""
    network, other = (load_model(golden_runs / "runs/qnrf_vgg_trans")[0] for _ in range(2))
    indexes, index_of, error = [], in_degree_index, 0.0

    def nudged(*arguments):
        index = index_of(*arguments)
        index[0, 3] = (index[0, 3] + 1) % 18
        indexes.append(index)
        return index

    def exported(image):
        indexes.clear()
        density = other(image).density
        density[0, 0, 1, 1] += error * density.max()
        return density, list(indexes)

    other.encoder.in_degree_index = nudged
    (line,) = compare(network, exported, ((64, 64),), 1e-4)
    found, held = map(float, re.findall(r"difference (\S+) of the largest cell, (\S+) with the same graph$", line)[0])
    assert held < 1e-5 < 1e-4 < found
    error = 1e-3
    with pytest.raises(ValueError, match=r"1.0e-03 with the same graph; more than 0.0001: not written"):
        compare(network, exported, ((64, 64),), 1e-4)


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _, _, err = export(tmp_path, "onnx", code=1)
    assert errors(err) == ["error: format onnx: needs the package onnxruntime: pip install -r requirements-export.txt"]
    _, _, err = export(tmp_path, "safetensors", "--out", tmp_path / "a.onnx", code=1)
    assert "a.onnx: .safetensors is the suffix of --format safetensors alone" in errors(err)[0]
