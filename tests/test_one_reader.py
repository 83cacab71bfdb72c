"""One reader of images for all ways in: ``test.py --images``, ``Counter`` (a path, a PIL image), ``examples/onnx_count.py``."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from commands import ROOT, call, errors
from own_folders import photo, photos, points, prepare
from PIL import Image, ImageDraw, ImageOps
from raw_data import write
from training_runs import Tiny

import hubconf
import models
from utils.training.run_folder import save_weights

PIXELS = np.random.default_rng(5).integers(0, 256, (48, 80, 3), dtype=np.uint8)
PIXELS[:24] //= 4  # upside down it counts something else
TURNED = [f"{orientation}{suffix}" for orientation in range(1, 9) for suffix in (".jpg", ".png", ".tif", ".webp")]
TOO_DEEP = r"cannot read this image \(more than 8 bits per channel, mode .*\); save it with 8 bits per channel"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", Tiny)
    torch.manual_seed(0)
    save_weights(tmp_path / "m.pth", Tiny().state_dict(), {"model_name": "vgg", "topk": 0.3, "usenum": 18})
    return tmp_path / "m.pth"


@pytest.fixture
def counter(weights):
    return hubconf.Counter(weights, device="cpu")


def by_script(weights, *paths, code=0):
    """Counts of ``test.py --images`` by name, sizes (width, height) by name, error lines."""
    out = weights.with_name("counted")
    _, err = call("test.py", "--save-path", weights, "--device", "cpu", "--images", *paths, "--out", out, code=code)
    table = out / "results.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    sizes = {row["image"]: (int(row["width"]), int(row["height"])) for row in rows}
    return {row["image"]: float(row["predicted"]) for row in rows}, sizes, errors(err)


def by_example(weights, *paths, code=0):
    """What ``examples/onnx_count.py`` prints, and its error lines."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        pytest.skip("pip install -r requirements-export.txt")
    exported = weights.with_suffix(".onnx")
    if not exported.exists():
        call("models/export.py", "--save-path", weights, "--format", "onnx", "--out", exported)
    command = [sys.executable, ROOT / "examples" / "onnx_count.py", exported, *paths]
    done = subprocess.run(command, cwd=weights.parent, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    found = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    return {path.rsplit("/", 1)[1]: float(number) for path, number in found.items()}, errors(done.stderr)


@pytest.mark.parametrize("name", TURNED)
def test_a_photograph_is_counted_as_it_is_shown(counter, tmp_path, name):
    path = photo(tmp_path / name, int(name[0]), pixels=PIXELS)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert upright.shape[:2] == ((80, 48) if int(name[0]) > 4 else (48, 80))
    expected, heads = counter.count(upright), counter.locate(upright)
    loaded = Image.open(path)
    loaded.load()
    for image in (path, str(path), Image.open(path), loaded, loaded.copy()):
        assert counter.count(image) == pytest.approx(expected, rel=1e-3)
        assert counter.density(image).shape == upright.shape[:2]
        np.testing.assert_allclose(counter.locate(image), heads, rtol=1e-3, atol=1e-2)
    assert counter.density(PIXELS).shape == PIXELS.shape[:2]  # an array as it is


def test_all_ways_in_count_the_same(counter, weights, tmp_path):
    paths = [photo(tmp_path / "in" / name, int(name[0]), pixels=PIXELS) for name in TURNED]
    counts, sizes, said = by_script(weights, *paths)
    others, more = by_example(weights, *paths)
    assert not said and not more and sorted(counts) == sorted(others) == sorted(TURNED)
    for path in paths:
        assert sizes[path.name] == counter.density(path).shape[::-1]
        assert counts[path.name] == pytest.approx(counter.count(path), abs=1e-3)
        assert others[path.name] == pytest.approx(counter.count(path), abs=0.01)


def test_a_picture_that_was_loaded_keeps_what_was_drawn_on_it(counter, tmp_path):
    for suffix in (".png", ".tif", ".jpg"):
        path = tmp_path / f"a{suffix}"
        Image.new("RGB", (80, 64)).save(path)
        image = Image.open(path)
        ImageDraw.Draw(image).rectangle((8, 8, 40, 40), fill=(200, 90, 90))
        assert counter.count(image) == counter.count(np.array(image.convert("RGB"))) != counter.count(path)


def deep(kind, folder):
    """A PIL image of more than 8 bits a channel, and its file where it has one."""
    values = np.linspace(0, 40_000, 48 * 80).reshape(48, 80)
    path = folder / {"16 bits, RGB": "a.png", "16 bits, RGBA": "a.png", "float file": "a.tif"}.get(kind, "b.png")
    if kind == "float":
        return Image.fromarray(values.astype(np.float32)), None
    if kind == "float, 0 to 1":
        return Image.fromarray((values / 40_000).astype(np.float32)), None
    if kind == "32 bits":
        return Image.fromarray(values.astype(np.int32)), None
    if kind == "32 bits, dark":
        return Image.fromarray(PIXELS[..., 0]).convert("I"), None
    if kind == "I;16":
        return Image.fromarray(values.astype(np.uint16)), None
    if kind == "I;16B":
        return Image.frombytes("I;16B", (80, 48), values.astype(">u2").tobytes()), None
    channels = {"16 bits, RGB": 3, "16 bits, RGBA": 4}.get(kind, 1)
    stored = np.stack([values] * channels, -1).astype(np.float32 if kind == "float file" else np.uint16)
    if kind == "16 bits, TIFF":
        path = folder / "c.tif"
    assert cv2.imwrite(str(path), stored)
    return Image.open(path), path


KINDS = ["float", "float, 0 to 1", "32 bits", "32 bits, dark", "I;16", "I;16B"]
FILES = ["16 bits", "16 bits, RGB", "16 bits, RGBA", "16 bits, TIFF", "float file"]


@pytest.mark.parametrize("kind", KINDS + FILES)
def test_more_than_8_bits_are_refused_everywhere(counter, weights, tmp_path, kind):
    image, path = deep(kind, tmp_path)
    for way in (counter.count, counter.density, counter.locate):
        with pytest.raises(ValueError, match=rf"^{path or 'image'}: {TOO_DEEP}$"):
            way(image)
    if path:
        with pytest.raises(ValueError, match=rf"^{path}: {TOO_DEEP}$"):
            counter.count(path)
        for lines in (by_script(weights, path, code=1)[2][:1], by_example(weights, path, code=1)[1]):
            assert len(lines) == 1 and str(path) in lines[0] and "more than 8 bits per channel" in lines[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_has_its_right_values(counter, mode):
    image = Image.new("LAB", (80, 48), (128, 20, 40)) if mode == "LAB" else Image.fromarray(PIXELS)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    assert counter.count(image) == counter.count(np.array(image.convert("RGB")))


def test_too_small_is_refused_everywhere(counter, weights, tmp_path):
    path = photo(tmp_path / "in" / "a.png", size=(10, 10))
    with pytest.raises(ValueError, match="must be at least 16 x 16 pixels, got 10 x 10"):
        counter.count(path)
    for lines in (by_script(weights, path, code=1)[2][:1], by_example(weights, path, code=1)[1]):
        assert len(lines) == 1 and "a.png: images must be at least 16 x 16 pixels, got 10 x 10" in lines[0]


def transparent(kind, folder):
    """An image of which a part is transparent over black, and what a viewer shows of it."""
    alpha = np.full((48, 80), 255, np.uint8)
    alpha[:, 40:] = 128 if kind == "half" else 0
    over = np.where(alpha[..., None] == 0, 0, PIXELS).astype(np.uint8)
    shown = np.round(over * (alpha / 255)[..., None] + 255 - alpha[..., None]).astype(np.uint8)
    image = Image.fromarray(np.dstack([over, alpha]))
    if kind == "LA":
        image = image.convert("LA")
        shown = np.where(alpha[..., None] == 0, 255, np.array(image.getchannel("L"))[..., None].repeat(3, 2))
    if kind in ("palette", "gif"):
        image = Image.fromarray(np.where(alpha == 0, 1, 0).astype(np.uint8))
        image.putpalette([30, 60, 90, 0, 0, 0])
        shown = np.where(alpha[..., None] == 0, 255, np.uint8([30, 60, 90]))
    if kind == "color key":
        image, shown = Image.fromarray(over), np.where(over.any(axis=2, keepdims=True), over, 255)
    path = folder / f"a.{kind if kind in ('tif', 'webp', 'gif') else 'png'}"
    key = {"palette": 1, "gif": 1, "color key": (0, 0, 0)}.get(kind)
    options = {"lossless": True} if kind == "webp" else {} if key is None else {"transparency": key}
    image.save(path, **options)
    return path, shown.astype(np.uint8)


@pytest.mark.parametrize("kind", ["none", "half", "LA", "palette", "color key", "tif", "webp", "gif"])
def test_what_is_transparent_lies_on_white(counter, weights, tmp_path, kind):
    path, shown = transparent(kind, tmp_path)
    expected = counter.count(shown)
    assert counter.count(path) == pytest.approx(expected, rel=1e-3)
    assert counter.count(Image.open(path)) == pytest.approx(expected, rel=1e-3)
    assert by_script(weights, path)[0][path.name] == pytest.approx(expected, rel=1e-3)


def test_nothing_to_see_is_refused(counter, weights, tmp_path):
    image = Image.fromarray(np.dstack([PIXELS, np.zeros((48, 80), np.uint8)]))
    image.save(tmp_path / "a.png")
    reason = r"cannot read this image \(it is transparent everywhere\); save it without its alpha channel$"
    for source, name in ((tmp_path / "a.png", tmp_path / "a.png"), (image, "image")):
        with pytest.raises(ValueError, match=rf"^{name}: {reason}"):
            counter.count(source)
    assert "transparent everywhere" in by_script(weights, tmp_path / "a.png", code=1)[2][0]


def pages(kind, path):
    """A file with several pages."""
    many = [Image.fromarray(np.roll(PIXELS, 9 * i, axis=1)) for i in range(4 if kind == "four pages" else 3)]
    if kind in ("grey", "composite"):
        many = [image.convert("L") for image in many]
    if kind == "other sizes":
        many[1] = many[1].resize((40, 30))
    if kind == "small copies of others":
        many[1].encoderinfo = {"tiffinfo": {254: 1}}
    if kind == "the small copy first":
        many = many[1:]
    first, *others = many
    form = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "png with a picture before": "PNG"}.get(kind, "TIFF")
    more = {"lzw": {"compression": "tiff_lzw"}, "the small copy first": {"tiffinfo": {254: 1}}}.get(kind, {})
    if kind == "the small copy first":
        others[0].encoderinfo = {"tiffinfo": {254: 0}}
    if kind == "png with a picture before":
        more = {"default_image": True}
    first.save(path, form, save_all=True, append_images=others, **more)
    return path, len(many)


PAGES = {
    "grey": ".tif",
    "four pages": ".tiff",
    "lzw": ".tif",
    "other sizes": ".tif",
    "called jpg": ".jpg",
    "gif": ".gif",
}
PAGES |= {"webp": ".webp", "png": ".png", "png with a picture before": ".png", "small copies of others": ".tif"}
PAGES |= {"the small copy first": ".tif"}


@pytest.mark.parametrize("kind", PAGES)
def test_several_pages_are_refused_everywhere(counter, weights, tmp_path, kind):
    path, count = pages(kind, tmp_path / f"a{PAGES[kind]}")
    reason = f"cannot read this image (it holds {count} pages);"
    for source, name, remedy in (
        (path, path, "save each as an image of its own"),
        (Image.open(path), path, "give one of them, image.copy()"),
    ):
        with pytest.raises(ValueError) as caught:
            counter.count(source)
        assert str(caught.value) == f"{name}: {reason} {remedy}"
    counter.count(Image.open(path).copy())
    said = f"error: {path}: {reason} save each as an image of its own"
    assert by_script(weights, path, code=1)[2][0] == said
    assert by_example(weights, path, code=1)[1] == [said]


def alone(kind, path):
    """A file with one picture, whatever else is in it."""
    first, other = Image.fromarray(PIXELS), Image.fromarray(PIXELS[:24, :40])
    if kind in ("a phone's preview", "a phone's depth"):
        first.save(
            path, "MPO", save_all=True, append_images=[other.convert("L") if "depth" in kind else other], quality=95
        )
    elif kind in ("a thumbnail", "a mask", "a pyramid"):
        other.encoderinfo = {"tiffinfo": {254: 4 if kind == "a mask" else 1}}
        smaller = [other, other.resize((20, 12))] if kind == "a pyramid" else [other]
        smaller[-1].encoderinfo = other.encoderinfo
        first.save(path, "TIFF", save_all=True, append_images=smaller)
    else:
        first.save(path, kind.upper(), save_all=True)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == {"a pyramid": 3}.get(kind, 2 if " " in kind else 1)
        return path, np.array(image.convert("RGB"))


ONE = {
    "a phone's preview": ".jpg",
    "a phone's depth": ".jpg",
    "a thumbnail": ".tif",
    "a mask": ".tif",
    "a pyramid": ".tif",
}


@pytest.mark.parametrize("kind", [*ONE, "gif", "webp", "png", "tiff"])
def test_one_picture_with_its_copies_is_counted(counter, weights, tmp_path, kind):
    path, pixels = alone(kind, tmp_path / f"a{ONE.get(kind, f'.{kind}')}")
    expected = counter.count(pixels)
    assert counter.count(path) == counter.count(Image.open(path)) == pytest.approx(expected, rel=1e-3)
    assert by_script(weights, path)[0][path.name] == pytest.approx(expected, rel=1e-3)


ANNOTATIONS = {"csv": (".csv", "x,y\n3,4\n"), "json": (".json", "[[3, 4]]"), "xy": (".txt", "3 4\n")}
ANNOTATIONS["yolo"] = ".txt", "0 0.5 0.5 0.1 0.1\n"


@pytest.mark.parametrize(
    "form, kind", [*((form, "grey") for form in ANNOTATIONS), ("csv", "webp"), ("csv", "png"), ("csv", "lzw")]
)
def test_several_pages_are_not_prepared(tmp_path, form, kind):
    folder, (suffix, text) = photos(tmp_path / "in"), ANNOTATIONS[form]
    for stem in ("train/a", "train/b", "val/c"):
        write(folder / f"{stem}{suffix}", text)
    path, count = pages(kind, folder / f"train/stack{PAGES[kind]}")
    write(path.with_suffix(suffix), text)
    out, _, err = prepare(folder, form, code=1)
    assert errors(err)[:-1] == [
        f"error: {path}: cannot read this image (it holds {count} pages); save each as an image of its own"
    ]
    assert sorted(points(out)) == ["a", "b", "c"]
