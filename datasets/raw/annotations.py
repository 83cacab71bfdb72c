"""The raw layouts of the published data sets: one finder and one reader for each.

A finder pairs the images of a raw folder with their annotation files. A reader turns one annotation file into float64
[N, 2], (x, y) in pixels of the raw image, or [N, 3] where the format says how large each head is: x, y, size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.raw.mat_file import MatObject, read_mat
from datasets.raw.raw_text import json_points, parse_number, read_json, read_text
from utils.files import LONGEST_NAME, gaussians_path, list_images

Pairs = tuple[dict[Path, Path | None], list[str]]

FOLDS = 5  # of UCF_CC_50
_UCF_SUFFIX = "_ann.mat"
_JHU_COLUMNS = "x y w h occlusion blur"
_SH_LAYOUTS = {"A": ("part_A_final", "part_A"), "B": ("part_B_final", "part_B")}
_SH_ANNOTATIONS = ("ground_truth", "ground-truth")


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
    _require_folder(folder, f"the input path must hold Train/ and Test/ with img_0001.jpg, img_0001{_UCF_SUFFIX}, ...")
    annotations = {path.name[: -len(_UCF_SUFFIX)]: path for path in _files(folder, _UCF_SUFFIX)}
    return _pair(folder, annotations, lambda stem: f"{stem}{_UCF_SUFFIX}")


def split_folds(images: Iterable[Path]) -> list[list[Path]]:
    """The folds of UCF_CC_50: its images, called by numbers, in their order, in five parts of ten.

    Raises ``ValueError`` for an image that is not called by a number, and for fewer than five.
    """
    numbered = {}
    for image in images:
        if not (image.stem.isascii() and image.stem.isdigit()):
            raise ValueError(f"{image}: UCF_CC_50 calls its images 1.jpg to 50.jpg; rename or remove this one")
        numbered[int(image.stem)] = image
    if len(numbered) < FOLDS:
        raise ValueError(f"{len(numbered)} images cannot be divided into {FOLDS} folds; UCF_CC_50 has 50")
    ordered = [numbered[number] for number in sorted(numbered)]
    edges = [round(len(ordered) * fold / FOLDS) for fold in range(FOLDS + 1)]
    return [ordered[first:last] for first, last in zip(edges, edges[1:])]


def find_jhu(folder: Path) -> Pairs:
    """The same for a split of JHU-Crowd++: ``images/0001.jpg`` belongs to ``gt/0001.txt``."""
    hint = "the input path must hold train/, val/ and test/, each with images/0001.jpg and gt/0001.txt"
    for name in ("images", "gt"):
        _require_folder(folder / name, hint)
    return _pair(folder / "images", _by_stem(folder / "gt", ".txt"), lambda stem: f"{stem}.txt")


def find_sh(folder: Path) -> Pairs:
    """The same for ``train_data`` or ``test_data`` of a part of ShanghaiTech.

    ``images/IMG_1.jpg`` belongs to ``GT_IMG_1.mat`` in ``ground_truth`` or ``ground-truth``.
    """
    _require_folder(folder / "images", "a part of ShanghaiTech holds train_data/ and test_data/, each with images/")
    there = [folder / name for name in _SH_ANNOTATIONS if (folder / name).is_dir()]
    if len(there) != 1:
        expected, count = f"{' or '.join(_SH_ANNOTATIONS)} with GT_IMG_1.mat, ...", "both" if there else "neither"
        raise FileNotFoundError(f"{folder}: must hold {expected}, and holds {count}; leave the right one there")
    annotations = {path.stem[len("GT_") :]: path for path in _files(there[0], ".mat") if path.name.startswith("GT_")}
    return _pair(folder / "images", annotations, lambda stem: f"GT_{stem}.mat")


def find_sh_part(root: Path, part: str | None) -> tuple[Path, str]:
    """The folder of ShanghaiTech's part "A" or "B", and which of the two it is.

    ``root`` is that folder, in which case its name or ``part`` tells, or its parent. Raises ``ValueError`` where the
    choice is not clear and ``FileNotFoundError`` where the part is missing.
    """
    if (root / "train_data").is_dir():
        named = [letter for letter, names in _SH_LAYOUTS.items() if root.name in names]
        if part and named and named != [part]:
            raise ValueError(f"--part {part}: {root} is part {named[0]}; give its own path, or drop --part")
        if not part and not named:
            raise ValueError(
                f"{root}: its name does not tell which part of ShanghaiTech it is; add --part A or --part B"
            )
        return root, part or named[0]
    names = {name: letter for letter, names in _SH_LAYOUTS.items() if part in (None, letter) for name in names}
    found = [name for name in names if (root / name / "train_data").is_dir()]
    if not found:
        raise FileNotFoundError(f"{root}: no {' or '.join(names)} with train_data/ here; check the input path")
    if len(found) > 1:
        raise ValueError(f"{root}: holds {' and '.join(found)}; choose with --part A or --part B, or give one's path")
    return root / found[0], names[found[0]]


def find_nwpu(root: Path) -> Pairs:
    """The same for all of NWPU-Crowd, whose lists divide it.

    ``0001.jpg`` in ``images`` or ``images_part1`` to ``images_part5`` belongs to ``mats/0001.mat`` or, without that, to
    ``jsons/0001.json``. Images without annotation are no problem here: those of the test split have none.
    """
    _require_folder(
        root, "the input path must hold images/ (or images_part1/ to images_part5/), mats/ or jsons/, lists"
    )
    folders = [path for path in sorted(root.iterdir()) if path.name == "images" or path.name.startswith("images_part")]
    folders = [path for path in folders if path.is_dir()]
    if not folders:
        raise FileNotFoundError(f"{root}: neither images/ nor images_part1/ is here; check the input path")
    images = unique_stems(image for folder in folders for image in list_images(folder))
    annotations: dict[str, Path] = {}
    for name, suffix in (("jsons", ".json"), ("mats", ".mat")):
        if (root / name).is_dir():
            annotations |= _by_stem(root / name, suffix)
    if not annotations:
        raise FileNotFoundError(
            f"{root}: no annotations in mats/ or jsons/; put one of the two folders beside the images"
        )
    pairs = {image: annotations.pop(image.stem, None) for image in images.values()}
    return pairs, [_image_missing(annotation, stem) for stem, annotation in annotations.items()]


def read_ucf(path: Path | str) -> np.ndarray:
    """Read a UCF-QNRF annotation: key ``annPoints`` of a MATLAB file, as float64 [N, 2].

    An image without people may hold an empty array of any shape. Raises ``FileNotFoundError``, or ``ValueError`` for a
    file that is damaged, lacks the key or holds something other than finite numbers in two columns.
    """
    return _checked_points(read_mat(path, "annPoints"), f"{path}: annPoints")


def read_jhu(path: Path) -> np.ndarray:
    """Read a JHU-Crowd++ annotation as float64 [N, 3]: x, y and height of each head; an empty file has no heads.

    One head a line, ``x y w h occlusion blur``, (x, y) its centre. Raises ``ValueError`` with the number of a line that
    is not six finite numbers, or whose size is negative.
    """
    heads = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields, where = line.split(), f"{path}: line {number}"
        if not fields:
            continue
        if len(fields) != 6:
            raise ValueError(
                f"{where}: {len(fields)} values; write the six numbers {_JHU_COLUMNS}, with blanks between"
            )
        x, y, width, height, *_ = (parse_number(field, where) for field in fields)
        if min(width, height) < 0:
            raise ValueError(f"{where}: a head of {width:g} x {height:g} pixels; correct or remove this line")
        heads.append((x, y, height))
    return np.array(heads, np.float64).reshape(-1, 3)


def read_nwpu(path: Path) -> np.ndarray:
    """Read an NWPU-Crowd annotation as float64 [N, 2]: key ``annPoints`` of a .mat, or ``points`` of a .json file."""
    if path.suffix.lower() == ".mat":
        return read_ucf(path)
    contents = read_json(path)
    if not isinstance(contents, dict) or "points" not in contents:
        raise ValueError(f"{path}: no key points; an NWPU file is an object with the list points, [[x, y], ...]")
    return json_points(contents["points"], f"{path}: points")


def read_sh(path: Path) -> np.ndarray:
    """Read a ShanghaiTech annotation as float64 [N, 2]: ``image_info``, a cell that holds a struct with ``location``."""
    value = read_mat(path, "image_info")
    # image_info[0, 0][0, 0][0] of the released files: a cell, a struct and its first field.
    while isinstance(value, list) and len(value) == 1:
        value = value[0].get("location", MatObject("no location")) if isinstance(value[0], dict) else value[0]
    return _checked_points(value, f"{path}: location in image_info")


def _require_folder(folder: Path, hint: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {hint}")


def _files(folder: Path, ending: str) -> list[Path]:
    """The files whose name ends so, in lower or upper case; archives made on a Mac hold hidden ones besides."""
    return [path for path in sorted(folder.glob("[!.]*")) if path.name.lower().endswith(ending)]


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    return {path.stem: path for path in _files(folder, suffix)}


def _pair(folder: Path, annotations: Mapping[str, Path], name: Callable[[str], str]) -> Pairs:
    """Pair the images of ``folder`` with the annotations by stem; ``name`` makes an annotation's name from a stem."""
    single = dict(annotations)
    pairs = {image: single.pop(image.stem, None) for image in unique_stems(list_images(folder)).values()}
    problems = [
        f"{image}: its annotation {name(image.stem)} is missing; add it, or remove the image"
        for image, annotation in pairs.items()
        if annotation is None
    ]
    return pairs, problems + [_image_missing(annotation, stem) for stem, annotation in single.items()]


def _image_missing(annotation: Path, stem: str) -> str:
    return f"{annotation}: its image {stem}.jpg is missing; add it, or remove the annotation"


def _checked_points(values: Any, where: str) -> np.ndarray:
    """``values`` as float64 [N, 2], or a ``ValueError`` that starts with ``where``."""
    if not isinstance(values, np.ndarray):
        kind = values if isinstance(values, MatObject) else "a cell or struct array"
        raise ValueError(f"{where} holds {kind} instead of numbers; store the points as a numeric array [N, 2]")
    if values.size == 0 and values.ndim <= 2:
        return np.zeros((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"{where} has shape {list(values.shape)}; store one row (x, y) for each point, [N, 2]")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"{where}: row {bad[0] + 1} is {values[bad[0]].tolist()}; correct or remove this point")
    return values
