"""Which raw images become ``train``, ``val`` and ``test`` where the raw data set does not say."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
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
    train or of val, that split is the rest. Without both, ``val_fraction`` of the images is drawn. Without any list so is
    ``test_fraction``, and a ``split.json`` for the same seed, fractions and images is used as it stands. There is a test
    split only with ``test_list`` or ``test_fraction``. Raises ``ValueError`` or ``OSError``, naming the file, for lists that
    cannot be read or do not fit, and ``ValueError`` for images of one name.
    """
    by_stem = unique_stems(images)
    path = make_folder(arguments.output_dataset_path) / "split.json"
    lists = {name: given for name in SPLITS if (given := getattr(arguments, f"{name}_list", None))}
    drawn = lists.keys() <= {"test"}
    fractions = {"val": arguments.val_fraction, "test": 0.0 if lists else getattr(arguments, "test_fraction", 0.0)}
    splits = SPLITS if "test" in lists or fractions["test"] else SPLITS[:2]
    origin: dict[str, object] = {f"{name}_list": str(lists[name]) if name in lists else None for name in SPLITS[:2]}
    origin |= {"val_fraction": fractions["val"] if drawn else None, "seed": arguments.seed if drawn else None}
    if len(splits) == 3:
        test_list = str(lists["test"]) if "test" in lists else None
        origin |= {"test_list": test_list, "test_fraction": fractions["test"] or None}
    stems, rest = _read_lists(lists, by_stem)
    stored = None if lists else _stored_split(path, origin, by_stem, splits)
    if drawn:
        stems = stored or stems | _seeded_split(sorted(rest), fractions, arguments.seed)
    elif {"train", "val"} <= lists.keys():
        _warn_of_rest(rest, by_stem)
    else:
        stems |= {"val" if "train" in lists else "train": rest}
    split = {name: [by_stem[stem] for stem in sorted(stems[name])] for name in splits}
    for name in splits:
        if not split[name]:
            given = lists.get("train", lists.get("val", path))
            raise ValueError(f"{given}: leaves no image for {name}; correct the lists")
    write_json(path, origin | {name: [image.name for image in split[name]] for name in splits})
    how = "by the lists given"
    if drawn:
        how = f"{'test by the list' if lists else 'no lists'} given, seed {arguments.seed}"
        how += "".join(f", {name} fraction {fraction:g}" for name, fraction in fractions.items() if fraction)
    counts = [f"{len(split[name])} {name}" for name in splits]
    written = "kept from" if stored else "written to"
    print(f"split: {', '.join(counts[:-1])} and {counts[-1]} images ({how}), {written} {path}")
    return split


def split_nwpu(images: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """The splits of NWPU-Crowd by its ``train.txt``, ``val.txt`` and ``test.txt``.

    A line is an image's number, alone or with the two further columns ``luminance level``. Raises like
    ``split_train_val``.
    """
    by_stem = unique_stems(images)
    stems, rest = _read_lists({name: folder / f"{name}.txt" for name in SPLITS}, by_stem, columns=(1, 3))
    _warn_of_rest(rest, by_stem)
    return {name: [by_stem[stem] for stem in sorted(stems[name])] for name in SPLITS}


def _read_lists(
    lists: Mapping[str, Path], by_stem: Mapping[str, Path], columns: Sequence[int] = ()
) -> tuple[dict[str, set[str]], set[str]]:
    """The stems of each list, and those of none."""
    stems = {name: _read_list(path, by_stem, columns) for name, path in lists.items()}
    for one, other in itertools.combinations(stems, 2):
        both = sorted(stems[one] & stems[other])
        if both:
            reason = f"{_some(both)} also in {lists[one]}; an image belongs to one list only"
            raise ValueError(f"{lists[other]}: {reason}")
    return stems, set(by_stem).difference(*stems.values())


def _read_list(path: Path, by_stem: Mapping[str, Path], columns: Sequence[int] = ()) -> set[str]:
    """The stems that a list names, one a line, with or without the image's suffix.

    With ``columns``, a line has one of these numbers of columns, and the first names the image.
    """
    stems, known = set(), {one_form(stem): stem for stem in by_stem}
    for name, where in read_lines(path):
        if columns:
            name, *others = name.split()
            if len(others) + 1 not in columns:
                allowed = " or ".join(map(str, columns))
                raise ValueError(f"{where}: {len(others) + 1} columns; write {allowed}, image first")
        stem = Path(name).stem if name.lower().endswith(PICTURES) else name
        if "\\" in stem and one_form(prepared_stem(stem)) not in known:  # a path as Windows writes it
            stem = stem.rpartition("\\")[2]
        key = one_form(prepared_stem(stem))
        if key not in known:
            raise ValueError(f"{where}: the input has no image {name}; correct the list")
        stems.add(known[key])
    if not stems:
        raise ValueError(f"{path}: names no image; give a list of image names, one a line")
    return stems


def _warn_of_rest(rest: set[str], by_stem: Mapping[str, Path]) -> None:
    if rest:
        names = _some(sorted(by_stem[stem].name for stem in rest))
        warn(f"{len(rest)} images are in none of the lists and are left out: {names}")


def _seeded_split(stems: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, set[str]]:
    others = [name for name, fraction in fractions.items() if fraction]
    if len(stems) <= len(others):
        raise ValueError(f"{len(stems)} image(s) cannot be divided into train, {' and '.join(others)}; add images")
    # Ranked by a hash of the name, an image stays where it is when others are added or removed.
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}/{stem}".encode(errors="surrogateescape")).digest())
    split: dict[str, set[str]] = {}
    for left, name in zip(
        range(len(others), 0, -1), others, strict=True
    ):  # an image each for those that follow, and train
        size = min(max(1, round(fractions[name] * len(stems))), len(ranked) - left)
        split[name], ranked = set(ranked[:size]), ranked[size:]
    return split | {"train": set(ranked)}


def _stored_split(
    path: Path, origin: Mapping[str, object], by_stem: Mapping[str, Path], splits: Sequence[str]
) -> dict[str, set[str]] | None:
    """The split of an earlier run, if it was made the same way and of the same images."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if any(stored.get(key) != value for key, value in origin.items()):
            return None
        names = {name: [prepared_stem(Path(image).stem) for image in stored[name]] for name in splits}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a split that this script wrote; delete it to have it made anew") from None
    if sorted(stem for stems in names.values() for stem in stems) != sorted(by_stem):
        return None
    return {name: set(stems) for name, stems in names.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
