"""Counting through ``torch.hub`` and by import."""

from __future__ import annotations

import doctest
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT
from PIL import Image

import hubconf
from utils.evaluation import count, density_map, predict
from utils.evaluation.localisation import locate_windows
from utils.images import load_image
from utils.pixels import normalise, to_planes


@pytest.fixture(scope="module")
def folder(golden_runs):
    """The runs, and a photograph of one window."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 64)).save(golden_runs / "photo.jpg")
    return golden_runs


@pytest.fixture(scope="module")
def counter(folder):
    return hubconf.Counter(folder / "runs/qnrf_vgg", device="cpu", window=64)


def test_the_docstrings_tell_the_truth(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "hubconf.py").symlink_to(ROOT / "hubconf.py")
    Image.open(folder / "photo.jpg").resize((200, 150)).save("photo.jpg.tmp", "JPEG")
    os.replace("photo.jpg.tmp", "photo.jpg")
    failed, run = doctest.testmod(hubconf)
    assert run >= 9 and not failed


def test_it_counts_as_the_evaluation_does(folder, counter):
    image = load_image(folder / "photo.jpg")
    pixels = normalise(to_planes(image))
    assert counter.count(folder / "photo.jpg") == count(counter.model, pixels, 64)
    parts = predict(counter.model, pixels, 64)
    assert np.array_equal(counter.density(image), density_map(parts).numpy())
    assert np.array_equal(counter.locate(image), locate_windows(parts))
    alone = hubconf.Counter(folder / "runs/qnrf_vgg", device="cpu", window=64, batch=1)
    assert alone.count(image) == pytest.approx(counter.count(image), rel=1e-5)
    grey = image[..., 0]
    assert counter.count(grey) == counter.count(Image.fromarray(grey))


@pytest.mark.parametrize("image", [np.zeros((32, 32, 3)), np.zeros((3, 32, 32), np.uint8), np.zeros((4,), np.uint8)])
def test_what_is_no_image_is_refused(counter, image):
    with pytest.raises(ValueError, match=r"image: .*; give a path, a PIL image, or an array uint8 \[H, W, 3\] in RGB"):
        counter.count(image)


def test_other_weights_and_devices_are_refused(folder, tmp_path):
    trans = folder / "runs/qnrf_vgg_trans"
    with pytest.raises(ValueError, match="weights of vgg_trans, not of vgg; load gst_vgg19_trans"):
        hubconf.gst_vgg19(trans, device="cpu")
    assert hubconf.gst_vgg19_trans(trans, device="cpu").description["topk"] == 0.3
    with pytest.raises(FileNotFoundError, match="no.pth: no such weights file"):
        hubconf.Counter(tmp_path / "no.pth")
    with pytest.raises(ValueError, match="--device tpu: neither cpu nor GPU ids"):
        hubconf.Counter(folder / "runs/qnrf_vgg", device="tpu")
    with pytest.raises(ValueError, match="batch: 0, must be at least 1"):
        hubconf.Counter(folder / "runs/qnrf_vgg", batch=0)


def requirements(path):
    """The names of the packages in a file of requirements and in those that it includes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    included = [requirements(path.with_name(line[3:].strip())) for line in lines if line.startswith("-r ")]
    return {re.split(r"[^\w.-]", line.lower())[0] for line in lines if not line.startswith("-")}.union(*included)


def test_torch_hub_loads_a_folder_without_network_and_the_dependencies_are_what_is_imported(folder, tmp_path):
    """As a new user would, from a folder of their own, where every connection fails. torch.hub looks for the dependencies
    before it loads the project's files, which note what they import, as they are loaded and as they count."""
    code = f"""
import builtins, glob, json, socket, sys, torch
def refuse(*_): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
original, asked = builtins.__import__, set()
def note(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and (globals or {{}}).get("__file__") in files:
        asked.add(name.split(".")[0])
    return original(name, globals, locals, fromlist, level)
files = {{{str(ROOT / "hubconf.py")!r}, *glob.glob({str(ROOT)!r} + "/[a-z]*/**/*.py", recursive=True)}}
builtins.__import__ = note
counter = torch.hub.load({str(ROOT)!r}, "gst_vgg19", source="local", weights={str(folder / "runs/qnrf_vgg")!r}, device="cpu")
print(json.dumps([counter.count({str(folder / "photo.jpg")!r}), *(asked - set(sys.stdlib_module_names))]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    count, *asked = json.loads(done.stdout)
    here = hubconf.Counter(folder / "runs/qnrf_vgg", device="cpu").count(folder / "photo.jpg")
    assert count == pytest.approx(here, rel=1e-4)
    assert sorted(set(asked) - {path.stem for path in ROOT.iterdir()}) == sorted(hubconf.dependencies)
    required = requirements(ROOT / "requirements.txt")
    packages = importlib.metadata.packages_distributions()
    for name in hubconf.dependencies:
        assert required & {found.lower() for found in packages[name]}, name
