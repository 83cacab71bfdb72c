"""The raw layouts of the published data sets: one finder and one reader for each.

A finder pairs the images of a raw folder with their annotation files. A reader turns one annotation file into float64
[N, 2], (x, y) in pixels of the raw image, or [N, 3] where the format says how large each head is: x, y, size in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.raw.mat_file import read_mat_points
from datasets.raw.raw_text import json_points, member, parse_number, read_json, read_lines
from utils.files import LONGEST_NAME, gaussians_path, list_images

Pairs = tuple[dict[Path, Path | None], list[str]]

FOLDS = 5  # of UCF_CC_50
_SH_PARTS = {"part_A_final": "A", "part_A": "A", "part_B_final": "B", "part_B": "B"}


def prepared_stem(stem: str) -> str:
    """The stem of a prepared image: UCF-QNRF's ``img_0001`` is written as ``IMG_0001``, every other name is kept."""
    return f"IMG_{stem.removeprefix('img_')}" if stem.startswith("img_") else stem


def unique_stems(images: Iterable[Path]) -> dict[str, Path]:
    """The images by their prepared stem; ``ValueError`` where two would be prepared under one name, or under too long a one."""
    stems: dict[str, Path] = {}
    for image in images:
        derived = gaussians_path(Path(f"{prepared_stem(image.stem)}.jpg")).name
        if (length := len(derived.encode(errors="surrogateescape"))) > LONGEST_NAME:
            limit = f"{derived:.40}... would have {length} bytes, and a file system takes {LONGEST_NAME}"
            raise ValueError(f"{image}: its name is too long: {limit}; rename the image and its annotation")
        other = stems.setdefault(prepared_stem(image.stem), image)
        if other is not image:
            name = other.name if other.parent == image.parent else other
            raise ValueError(f"{image}: would be written under the name of {name} too; rename or remove one")
    return stems


def find_ucf(folder: Path) -> Pairs:
    """Pair the images of a UCF-QNRF folder (``Train`` or ``Test``) with their annotations, sorted by name.

    ``img_0001.jpg`` belongs to ``img_0001_ann.mat`` in the same folder. Returns every image with its annotation, or
    None where that is missing, and one line for each file that lacks its partner. Raises ``FileNotFoundError`` for a
    folder that is missing or holds no image, and ``ValueError`` for two images that would be prepared under one name.
    """
    return _pair(folder, folder, "_ann.mat")


def fold_of(image: Path) -> int:
    """Which fold of UCF_CC_50 an image, called by its number, is for the test of: 1 to 10 are for that of the first."""
    if not (image.stem.isascii() and image.stem.isdigit()):
        raise ValueError(f"{image}: UCF_CC_50 calls its images 1.jpg to 50.jpg; rename or remove this one")
    return (int(image.stem) - 1) // 10 + 1


def find_jhu(folder: Path) -> Pairs:
    """The same for a split of JHU-Crowd++: ``images/0001.jpg`` belongs to ``gt/0001.txt``."""
    return _pair(folder / "images", folder / "gt", ".txt")


def find_sh(folder: Path) -> Pairs:
    """The same for ``train_data`` or ``test_data`` of a part of ShanghaiTech.

    ``images/IMG_1.jpg`` belongs to ``GT_IMG_1.mat`` in ``ground_truth`` or ``ground-truth``.
    """
    annotations = folder / ("ground-truth" if (folder / "ground-truth").is_dir() else "ground_truth")
    return _pair(folder / "images", annotations, ".mat", prefix="GT_")


def find_sh_part(root: Path, part: str | None) -> tuple[Path, str]:
    """The folder of ShanghaiTech's part "A" or "B", and which of the two it is.

    ``root`` is that folder, in which case its name or ``part`` tells, or its parent. Raises ``ValueError`` where the
    choice is not clear or the part is missing.
    """
    folders = {name: root / name for name in _SH_PARTS}
    if (root / "train_data").is_dir():
        folders = {root.name: root}
    found = {
        path: letter
        for name, path in folders.items()
        if (path / "train_data").is_dir() and (letter := _SH_PARTS.get(name, part)) and part in (None, letter)
    }
    if len(found) != 1:
        there = " and ".join(path.name for path in found) or f"no part {part or 'A or B'} by its name, with train_data/"
        raise ValueError(f"{root}: holds {there}; choose with --part A or --part B, or give the path of one")
    return next(iter(found.items()))


def find_nwpu(root: Path) -> Pairs:
    """The same for all of NWPU-Crowd, whose lists divide it.

    ``0001.jpg`` in ``images`` or ``images_part1`` to ``images_part5`` belongs to ``mats/0001.mat`` or, without that, to
    ``jsons/0001.json``. Images without annotation are no problem here: those of the test split have none.
    """
    folders = [path for path in (root / "images", *sorted(root.glob("images_part*"))) if path.is_dir()]
    annotations: dict[str, Path] = {}
    for name, suffix in (("jsons", ".json"), ("mats", ".mat")):
        annotations |= _annotations(root / name, suffix)
    if not folders or not annotations:
        what = "annotations in mats/ or jsons/" if folders else "images/ and no images_part1/ to images_part5/"
        raise FileNotFoundError(f"{root}: has no {what}; the input path must hold both, and the lists")
    images = unique_stems(image for folder in folders for image in list_images(folder))
    pairs = {image: annotations.pop(image.stem, None) for image in images.values()}
    return pairs, [_image_missing(annotation, stem) for stem, annotation in annotations.items()]


def read_ucf(path: Path | str) -> np.ndarray:
    """Read a UCF-QNRF annotation: key ``annPoints`` of a MATLAB file, as float64 [N, 2]; errors as in ``read_mat_points``."""
    return read_mat_points(Path(path), ["annPoints"])


def read_jhu(path: Path) -> np.ndarray:
    """Read a JHU-Crowd++ annotation as float64 [N, 3]: x, y and height of each head; an empty file has no heads.

    One head a line, ``x y w h occlusion blur``, (x, y) its centre. Raises ``ValueError`` with the number of a line that
    is not six finite numbers, or whose size is negative.
    """
    heads = []
    for line, where in read_lines(path):
        fields = line.split()
        if len(fields) != 6:
            hint = "write the six numbers x y w h occlusion blur, with blanks between"
            raise ValueError(f"{where}: {len(fields)} values; {hint}")
        x, y, width, height, *_ = (parse_number(field, where) for field in fields)
        if min(width, height) < 0:
            raise ValueError(f"{where}: a head of {width:g} x {height:g} pixels; correct or remove this line")
        heads.append((x, y, height))
    return np.array(heads, np.float64).reshape(-1, 3)


def read_nwpu(path: Path) -> np.ndarray:
    """Read an NWPU-Crowd annotation as float64 [N, 2]: key ``annPoints`` of a .mat, or ``points`` of a .json file."""
    if path.suffix.lower() == ".mat":
        return read_ucf(path)
    return json_points(member(read_json(path), "points", list, f"{path}"), f"{path}: points")


def read_sh(path: Path) -> np.ndarray:
    """Read a ShanghaiTech annotation as float64 [N, 2]: ``image_info``, a cell that holds a struct with ``location``."""
    return read_mat_points(path, ["image_info"])


def _annotations(folder: Path, suffix: str, prefix: str = "") -> dict[str, Path]:
    """The annotations in a folder by the stem of their image, their suffix in lower or upper case; no hidden files."""
    paths = [path for path in sorted(folder.glob("[!.]*")) if path.name.lower().endswith(suffix)]
    return {path.name[len(prefix) : -len(suffix)]: path for path in paths if path.name.startswith(prefix)}


def _pair(folder: Path, annotations: Path, suffix: str, prefix: str = "") -> Pairs:
    """Pair the images of a folder with ``annotations``, files called ``prefix``, stem, ``suffix``."""
    for path in (folder, annotations):
        if not path.is_dir():
            layouts = "the input path must hold the data set as it is published, see docs/formats.md"
            raise FileNotFoundError(f"{path}: no such folder; {layouts}")
    single = _annotations(annotations, suffix, prefix)
    pairs = {image: single.pop(image.stem, None) for image in unique_stems(list_images(folder)).values()}
    problems = [
        f"{image}: its annotation {prefix}{image.stem}{suffix} is missing; add it, or remove the image"
        for image, annotation in pairs.items()
        if annotation is None
    ]
    return pairs, problems + [_image_missing(annotation, stem) for stem, annotation in single.items()]


def _image_missing(annotation: Path, stem: str) -> str:
    return f"{annotation}: its image {stem}.jpg is missing; add it, or remove the annotation"
