"""Which raw images become ``train``, ``val`` and ``test`` where the raw data set does not say."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.raw.annotations import prepared_stem, unique_stems
from datasets.raw.raw_text import one_form, read_lines
from utils.cli import warn
from utils.config import number
from utils.files import PICTURES, SPLITS, make_folder, write_json


def add_split_options(parser: argparse.ArgumentParser, of: str, test: bool = False) -> None:
    """The options of ``split_train_val`` for a script; ``of`` names what is divided, with ``test`` also into a test split."""
    for name in SPLITS if test else SPLITS[:2]:
        text = f"names of the {name} images, one a line"
        parser.add_argument(f"--{name}-list", type=Path, metavar="FILE", help=text)
    text = f"part of {of} that becomes val, without lists"
    parser.add_argument("--val-fraction", type=number(float, 0, 0.9, above=True), default=0.1, help=text)
    if test:
        text = "part that becomes test, without lists and folders"
        parser.add_argument("--test-fraction", type=number(float, 0, 0.9), default=0.1, help=text)
    parser.add_argument("--seed", type=number(int), default=4073, help="of the split, without lists")


def divide_folders(
    folders: Mapping[str | None, Sequence[Path]], arguments: argparse.Namespace
) -> dict[str, list[Path]]:
    """Splits that folders give; where they give train but no val, val is taken from train, and without any all is drawn.

    ``folders`` maps train, val, test or, for images in none of these, None to images. Raises ``ValueError`` for lists
    that contradict the folders, and like ``split_train_val``.
    """
    if set(folders) <= {None}:
        return split_train_val(folders.get(None, []), arguments)
    split = {name: list(unique_stems(folders[name]).values()) for name in SPLITS if name in folders}
    divided = "train" in split and "val" not in split
    for name in ("train_list", "val_list", "test_list"):
        if (given := getattr(arguments, name)) and (not divided or name == "test_list"):
            what = f"the folders {', '.join(split)} decide already; drop this option or the folders"
            raise ValueError(f"--{name.replace('_', '-')} {given}: {what}")
    if None in folders:
        lost = f"{len(folders[None])} images (first {folders[None][0]}) lie in none of the folders {', '.join(split)}"
        warn(f"{lost} and are left out")
    for name in SPLITS:
        if name not in split and not (name == "val" and divided):
            print(f"no folder {name}: there will be no {name} split")
    if divided:
        only_train = argparse.Namespace(**{**vars(arguments), "test_fraction": 0.0})
        split |= split_train_val(split["train"], only_train)
    return {name: split[name] for name in SPLITS if name in split}


def split_train_val(images: Sequence[Path], arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Divide the raw images, say how, and write the result to ``split.json`` in the output folder.

    ``arguments`` are those of ``add_split_options``. With lists (one image name a line) the lists decide; without that of
    train or of val, that split is the rest. Without both, ``val_fraction`` of the images is drawn, and without any list
    ``test_fraction``: the same ones for the same seed and names. There is a test split only with ``test_list`` or
    ``test_fraction``. Raises ``ValueError`` or ``OSError``, naming the file, for lists that cannot be read or do not fit, and
    ``ValueError`` for images of one name.
    """
    by_stem = unique_stems(images)
    path = arguments.output_dataset_path / "split.json"
    lists = {name: given for name in SPLITS if (given := getattr(arguments, f"{name}_list", None))}
    stems = {name: _read_list(given, by_stem) for name, given in lists.items()}
    for one, other in itertools.combinations(stems, 2):
        if both := sorted(stems[one] & stems[other]):
            reason = f"{both[0]} also in {lists[one]}; an image belongs to one list only"
            raise ValueError(f"{lists[other]}: {reason}")
    rest = set(by_stem).difference(*stems.values())
    fractions = {}
    if others := {"train", "val"} - lists.keys():
        if len(others) == 2:
            fractions = {"val": arguments.val_fraction}
            if not lists and (test_fraction := getattr(arguments, "test_fraction", 0.0)):
                fractions["test"] = test_fraction
            stems |= _seeded_split(sorted(rest), fractions, arguments.seed)
        else:
            stems[others.pop()] = rest
    elif rest:
        warn(f"{len(rest)} images are in none of the lists and are left out (first {by_stem[min(rest)]})")
    splits = [name for name in SPLITS if name in stems]
    split = {name: [by_stem[stem] for stem in sorted(stems[name])] for name in splits}
    for name in splits:
        if not split[name]:
            by = lists.get("train", lists.get("val", path))
            raise ValueError(f"{by}: leaves no image for {name}; correct the lists")
    origin: dict[str, object] = {f"{name}_list": str(lists[name]) if name in lists else None for name in splits}
    origin |= {f"{name}_fraction": fractions.get(name) for name in splits[1:]}
    origin["seed"] = arguments.seed if fractions else None
    make_folder(path.parent)
    write_json(path, origin | {name: [image.name for image in split[name]] for name in splits})
    how = "by the lists given"
    if fractions:
        how = f"{'test by the list' if lists else 'no lists'} given, seed {arguments.seed}"
        how += "".join(f", {name} fraction {fraction:g}" for name, fraction in fractions.items())
    counts = [f"{len(split[name])} {name}" for name in splits]
    print(f"split: {', '.join(counts[:-1])} and {counts[-1]} images ({how}), written to {path}")
    return split


def _read_list(path: Path, by_stem: Mapping[str, Path]) -> set[str]:
    """The stems that a list names, one a line, with or without the image's suffix; NWPU-Crowd has luminance and level behind it."""
    stems, known = set(), {one_form(stem): stem for stem in by_stem}
    for line, where in read_lines(path):
        names = [line, line.rpartition("\\")[2]]  # a path as Windows writes it
        names += [line.split()[0]] if re.fullmatch(r"\S+\s+\d+\s+\d+", line) else []
        names = [Path(name).stem if name.lower().endswith(PICTURES) else name for name in names]
        key = next((key for name in names if (key := one_form(prepared_stem(name))) in known), None)
        if key is None:
            raise ValueError(f"{where}: the input has no image {line}; correct the list")
        stems.add(known[key])
    if not stems:
        raise ValueError(f"{path}: names no image; give a list of image names, one a line")
    return stems


def _seeded_split(stems: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, set[str]]:
    if len(stems) <= len(fractions):
        others = " and ".join(fractions)
        raise ValueError(f"{len(stems)} image(s) cannot be divided into train, {others}; add images")
    # Ranked by a hash of the name, an image stays where it is when others are added or removed.
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}/{stem}".encode(errors="surrogateescape")).digest())
    split: dict[str, set[str]] = {}
    for left, name in zip(range(len(fractions), 0, -1), fractions):  # an image each for those that follow, and train
        size = min(max(1, round(fractions[name] * len(stems))), len(ranked) - left)
        split[name], ranked = set(ranked[:size]), ranked[size:]
    return split | {"train": set(ranked)}
