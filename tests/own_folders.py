"""Small folders of photographs with annotations as people have them, and the script run on them."""

import json

import numpy as np
from commands import call
from PIL import Image
from raw_data import write

from datasets.raw.marks import Request, counted
from datasets.raw.point_folders import FORMATS
from utils.files import read_points

ORIENTATION = 0x0112
SIDES = 200, 150  # width and height of a photograph, in the grid that it is stored in


def photo(path, orientation=1, size=SIDES, pixels=None):
    """An image file whose EXIF data give its orientation; ``pixels`` are those of the stored grid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def photos(folder, *names, **options):
    for name in names or ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        photo(folder / name, **options)
    return folder


def prepare(folder, form, *options, code=0):
    """preprocess_dataset_points.py of ``folder`` -> (the prepared folder, stdout, stderr)."""
    out = folder.with_name(f"{folder.name}_out")
    paths = ("--input-dataset-path", folder, "--output-dataset-path", out)
    small = ("--min-size", 30, "--crop-size", 32, "--workers", 1)
    return out, *call("preprocess_dataset_points.py", "--format", form, *paths, *small, *options, code=code)


def read(form, path, categories=(), **request):
    """What the reader of a format makes of a file, by the images that it names."""
    return counted(FORMATS[form].read(path, Request(**request)), categories)


def of_image(form, path, size=SIDES):
    """The marks of a file that belongs to one image, of that width and height."""
    marks, image_size = read(form, path, named=False)[""]
    return [mark.scaled(*size) for mark in marks] if image_size == (1, 1) else marks


def points(out):
    """x, y of each prepared image, by its stem."""
    return {path.stem: read_points(path)[:, :2].tolist() for path in sorted(out.glob("*/*.npy"))}


def sizes(out, stem):
    """The third column of a training image."""
    return read_points(out / "train" / f"{stem}.npy")[:, 2].tolist()


def report(out):
    return json.loads((out / "dataset_report.json").read_text())


__all__ = ["SIDES", "of_image", "photo", "photos", "points", "prepare", "read", "report", "sizes", "write"]
