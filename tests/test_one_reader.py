"""One reader of images for all ways in: ``test.py --images``, ``Counter`` (a path, a PIL image), ``examples/onnx_count.py``."""

from __future__ import annotations

import csv
import importlib.util
import re

import cv2
import numpy as np
import pytest
import torch
from commands import call, errors, run
from own_folders import photo
from PIL import Image, ImageOps
from training_runs import Tiny

import hubconf
from utils.images import load_image
from utils.training.run_folder import save_weights

pytestmark = pytest.mark.usefixtures("tiny")
PIXELS = np.random.default_rng(5).integers(0, 256, (48, 80, 3), dtype=np.uint8)
PIXELS[:24] //= 4  # upside down it counts something else
VALUES = np.linspace(0, 40_000, 48 * 80).reshape(48, 80)
ANOTHER = Image.fromarray(np.roll(PIXELS, 9, axis=1))
TOO_DEEP = "more than 8 bits per channel, mode "


def save_pages(path, form, pages, **options):
    """Pages in one file."""
    pages = [page.copy() for page in pages]
    pages[0].save(path, form, save_all=True, append_images=pages[1:], **options)


def make_transparent(path, kind):
    """An image of which a part is transparent over black -> what Pillow shows of it on white."""
    alpha = np.full((48, 80), 255, np.uint8)
    alpha[:, 40:] = 128 if kind == "half" else 0
    over, options = np.where(alpha[..., None] == 0, 0, PIXELS).astype(np.uint8), {}
    image = Image.fromarray(np.dstack([over, alpha])).convert("LA" if kind == "LA" else "RGBA")
    if kind == "palette":
        image, options = Image.fromarray(np.where(alpha == 0, 1, 0).astype(np.uint8)), {"transparency": 1}
        image.putpalette([30, 60, 90, 0, 0, 0])
    elif kind == "color key":
        image, options = Image.fromarray(over), {"transparency": (0, 0, 0)}
    image.save(path, **options, **({"lossless": True} if path.suffix == ".webp" else {}))
    with Image.open(path) as saved:
        return np.array(Image.alpha_composite(Image.new("RGBA", saved.size, "white"), saved.convert("RGBA")))[..., :3]


def make_all(root):
    """Files of all kinds -> the pixels that are shown of the pictures, by path, and why the others are refused."""
    root.mkdir()
    shown, refused = {}, {}
    for name in (f"{turn}{suffix}" for turn in range(1, 9) for suffix in (".jpg", ".png", ".tif", ".webp")):
        path = photo(root / name, int(name[0]), pixels=PIXELS)
        with Image.open(path) as image:
            shown[path] = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert shown[path].shape[:2] == ((80, 48) if int(name[0]) > 4 else (48, 80))
    kinds = ("none", "half", "LA", "palette", "color key"), (".png", ".png", ".png", ".gif", ".png")
    for kind, suffix in (*zip(*kinds), ("palette", ".png"), ("none", ".tif"), ("none", ".webp")):
        path = root / f"transparent {kind}{suffix}"
        shown[path] = make_transparent(path, kind)

    # One picture, with what phones store beside it.
    first, small = Image.fromarray(PIXELS), Image.fromarray(PIXELS[:24, :40])
    save_pages(root / "preview.jpg", "MPO", [first, small], quality=95)
    save_pages(root / "depth.jpg", "MPO", [first, small.convert("L")], quality=95)
    for form in ("gif", "webp", "png", "tiff"):
        save_pages(root / f"single.{form}", form.upper(), [first])
    for pattern in ("preview*", "depth*", "single*"):
        for path in root.glob(pattern):
            with Image.open(path) as image:
                shown[path] = np.array(image.convert("RGB"))

    pages = [first, ANOTHER, Image.fromarray(PIXELS[::-1])]
    for name, form in (("called jpg.jpg", "TIFF"), ("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG")):
        save_pages(root / name, form, pages)
        refused[root / name] = "it holds 3 pages"
    save_pages(root / "pyramid.tif", "TIFF", [first, small, small.resize((20, 12))])
    refused[root / "pyramid.tif"] = "it holds 3 pages"
    for name, channels, kind in (
        ("deep.png", 1, np.uint16),
        ("deep rgb.png", 3, np.uint16),
        ("deep rgba.png", 4, np.uint16),
        ("deep.tif", 1, np.uint16),
        ("float.tif", 1, np.float32),
    ):
        assert cv2.imwrite(str(root / name), np.stack([VALUES] * channels, -1).astype(kind))
        refused[root / name] = TOO_DEEP
    Image.fromarray(np.dstack([PIXELS, np.zeros((48, 80), np.uint8)])).save(root / "nothing.png")
    refused[root / "nothing.png"] = "it is transparent everywhere"
    return shown, refused


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("reader") / "in")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("reader") / "m.pth"
    torch.manual_seed(0)
    save_weights(path, Tiny().state_dict(), {"model_name": "vgg", "topk": 0.3, "usenum": 18})
    return path


@pytest.fixture
def counter(weights):
    return hubconf.Counter(weights, device="cpu")


def test_a_picture_is_read_as_it_is_shown(files):
    for path, expected in files[0].items():
        assert load_image(path).shape == PIXELS.shape  # as it is stored, which the published annotations refer to
        found = load_image(str(path), upright=True)
        assert found.shape == expected.shape and np.abs(found - expected.astype(float)).max() <= 1, path


def test_what_is_no_single_picture_of_8_bits_is_refused(files):
    for path, reason in files[1].items():
        remedy = "save each" if "pages" in reason else "save it"
        expected = re.escape(f"{path}: cannot read this image ({reason}")
        with pytest.raises(ValueError, match=f"^{expected}.*; {remedy}"):
            load_image(path)


@pytest.mark.parametrize("mode", ["F", "I", "I;16", "I;16B"])
def test_deep_images_of_pillow_are_refused(counter, mode):
    kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16, "I;16B": ">u2"}[mode]
    image = Image.frombytes(mode, (80, 48), VALUES.astype(kind).tobytes())
    with pytest.raises(ValueError, match=r"^image: \S+ \[48, 80, 3\]; give a path, a PIL image, or an array uint8"):
        counter.count(image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_images_of_every_mode_have_their_right_values(counter, mode):
    image = Image.new("LAB", (80, 48), (128, 20, 40)) if mode == "LAB" else Image.fromarray(PIXELS)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    assert counter.count(image) == counter.count(np.array(image.convert("RGB")))


def test_the_counter_takes_paths_and_images(counter, files):
    for path in [path for path in files[0] if path.stem in ("6", "transparent half", "preview")]:
        expected, heads = counter.count(files[0][path]), counter.locate(files[0][path])
        for image in (path, str(path), Image.open(path)):
            assert counter.count(image) == pytest.approx(expected, rel=1e-3)
            assert counter.density(image).shape == files[0][path].shape[:2]
            np.testing.assert_allclose(counter.locate(image), heads, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("way", ["script", "example"])
def test_both_scripts_count_what_the_counter_counts_and_name_the_others(counter, weights, files, way):
    shown, refused = files
    small = photo(next(iter(shown)).with_name("small.png"), size=(10, 10))
    paths = [*shown, *refused, small]
    if way == "script":
        out = weights.with_name("counted")
        device = "--save-path", weights, "--device", "cpu"
        _, err = call("test.py", *device, "--images", *paths, "--out", out, code=1)
        rows = list(csv.DictReader((out / "results.csv").open()))
        counts = {row["image"]: float(row["predicted"]) for row in rows}
        assert all((int(row["height"]), int(row["width"])) in ((48, 80), (80, 48)) for row in rows)
    else:
        if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
            pytest.skip("pip install -r requirements-export.txt")
        exported = weights.with_suffix(".onnx")
        call("models/export.py", "--save-path", weights, "--format", "onnx", "--out", exported)
        out, err = run("examples/onnx_count.py", exported, *paths, code=1)
        counts = {
            path.rsplit("/", 1)[1]: float(number)
            for path, number in (line.rsplit(": ", 1) for line in out.splitlines())
        }
    assert sorted(counts) == sorted(path.name for path in shown)
    for path, expected in shown.items():
        assert counts[path.name] == pytest.approx(counter.count(expected), rel=1e-3, abs=0.01), path
    lines = [line for line in errors(err) if "cannot read this image" in line or "must be at least" in line]
    assert len(lines) == len(refused) + 1
    for path, reason in refused.items():
        assert any(line.startswith(f"error: {path}: cannot read this image ({reason}") for line in lines), path
    assert f"{small.name}: images must be at least 16 x 16 pixels, got 10 x 10" in err
