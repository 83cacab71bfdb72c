"""Which raw images become ``train``, ``val`` and ``test`` where the raw data set does not say."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.raw.annotations import prepared_stem, unique_stems
from datasets.raw.raw_text import one_form, read_text
from utils.config import number
from utils.files import PICTURES, SPLITS, make_folder, write_json


def add_split_options(parser: argparse.ArgumentParser, of: str) -> None:
    """The options of ``split_train_val`` for a script; ``of`` names what is divided."""
    for name in ("train", "val"):
        text = f"names of the {name} images, one a line"
        parser.add_argument(f"--{name}-list", type=Path, metavar="FILE", help=text)
    text = f"part of {of} that becomes val, without lists"
    parser.add_argument("--val-fraction", type=number(float, 0, 0.9, above=True), default=0.1, help=text)
    parser.add_argument("--seed", type=number(int), default=4073, help="of the split, without lists")


def split_as_asked(images: Sequence[Path], root: Path, arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """``split_train_val`` with the options of ``add_split_options``, and ``test_list``, ``test_fraction`` where they are."""
    options = ("train_list", "val_list", "val_fraction", "seed", "test_list", "test_fraction")
    given = {name: getattr(arguments, name) for name in options if hasattr(arguments, name)}
    return split_train_val(images, make_folder(root), **given)


def divide_folders(
    folders: Mapping[str | None, Sequence[Path]], root: Path, arguments: argparse.Namespace
) -> dict[str, list[Path]]:
    """Splits that folders give; where they give train but no val, val is taken from train, and without any all is drawn.

    ``folders`` maps train, val, test or, for images in none of these, None to images. Raises ``ValueError`` for lists
    that contradict the folders, and like ``split_train_val``.
    """
    if set(folders) <= {None}:
        return split_as_asked(folders.get(None, []), root, arguments)
    split = {name: list(unique_stems(folders[name]).values()) for name in SPLITS if name in folders}
    divided = "train" in split and "val" not in split
    for name in ("train_list", "val_list", "test_list"):
        if getattr(arguments, name) and (not divided or name == "test_list"):
            option = f"--{name.replace('_', '-')} {getattr(arguments, name)}"
            raise ValueError(
                f"{option}: the folders {', '.join(split)} decide already; drop this option or the folders"
            )
    if None in folders:
        lost = f"{len(folders[None])} images (first {folders[None][0]}) lie in none of the folders {', '.join(split)}"
        print(f"warning: {lost} and are left out", file=sys.stderr)
    for name in SPLITS:
        if name not in split and not (name == "val" and divided):
            print(f"no folder {name}: there will be no {name} split")
    if divided:
        only_train = argparse.Namespace(**{**vars(arguments), "test_fraction": 0.0})
        split |= split_as_asked(split["train"], root, only_train)
    return {name: split[name] for name in SPLITS if name in split}


def split_train_val(
    images: Sequence[Path],
    root: Path,
    *,
    train_list: Path | None,
    val_list: Path | None,
    val_fraction: float,
    seed: int,
    test_list: Path | None = None,
    test_fraction: float = 0.0,
) -> dict[str, list[Path]]:
    """Divide the raw images, say how, and write the result to ``root/split.json``.

    With lists (one image name a line) the lists decide; without that of train or of val, that split is the rest. Without
    both, ``val_fraction`` of the images is drawn. Without any list so is ``test_fraction``, and a ``split.json`` for the
    same seed, fractions and images is used as it stands. There is a test split only with ``test_list`` or
    ``test_fraction``. Raises ``ValueError`` or ``OSError``, naming the file, for lists that cannot be read or do not fit,
    and ``ValueError`` for images of one name.
    """
    by_stem = unique_stems(images)
    lists = {"train": train_list, "val": val_list, "test": test_list}
    lists = {name: path for name, path in lists.items() if path}
    drawn = not train_list and not val_list
    origin: dict[str, object] = {
        "train_list": str(train_list) if train_list else None,
        "val_list": str(val_list) if val_list else None,
        "val_fraction": val_fraction if drawn else None,
        "seed": seed if drawn else None,
    }
    test_fraction = test_fraction if not lists else 0.0
    splits = ["train", "val"]
    if test_list or test_fraction:
        origin |= {"test_list": str(test_list) if test_list else None, "test_fraction": test_fraction or None}
        splits.append("test")
    path, stored = root / "split.json", None
    stems, rest = _read_lists(lists, by_stem)
    if drawn:
        stored = None if lists else _stored_split(path, origin, by_stem, splits)
        stems = stored or stems | _seeded_split(sorted(rest), val_fraction, test_fraction, seed)
    elif train_list and val_list:
        _warn_of_rest(rest, by_stem)
    else:
        stems |= {"val" if train_list else "train": rest}
    split = {name: [by_stem[stem] for stem in sorted(stems[name])] for name in splits}
    for name in splits:
        if not split[name]:
            raise ValueError(f"{train_list or val_list or path}: leaves no image for {name}; correct the lists")
    names = {name: [image.name for image in split[name]] for name in splits}
    write_json(path, origin | names)
    how = f"seed {seed}, val fraction {val_fraction:g}" + (
        f", test fraction {test_fraction:g}" if test_fraction else ""
    )
    how = ("no lists given, " if not lists else "test by the list given, ") + how if drawn else "by the lists given"
    counts = [f"{len(split[name])} {name}" for name in splits]
    kept = "kept from" if stored else "written to"
    print(f"split: {', '.join(counts[:-1])} and {counts[-1]} images ({how}), {kept} {path}")
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
    """The stems that a list names, one a line, with or without the image's suffix; blank lines do not count.

    With ``columns``, a line has one of these numbers of columns, and the first names the image.
    """
    stems, known = set(), {one_form(stem): stem for stem in by_stem}
    for line_number, line in enumerate(read_text(path).splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if columns:
            if len(line.split()) not in columns:
                allowed = " or ".join(map(str, columns))
                raise ValueError(
                    f"{path}: line {line_number}: {len(line.split())} columns; write {allowed}, image first"
                )
            name = line.split()[0]
        stem = Path(name).stem if name.lower().endswith(PICTURES) else name
        if "\\" in stem and one_form(prepared_stem(stem)) not in known:  # a path as Windows writes it
            stem = stem.rpartition("\\")[2]
        key = one_form(prepared_stem(stem))
        if key not in known:
            raise ValueError(f"{path}: line {line_number}: the input has no image {name}; correct the list")
        stems.add(known[key])
    if not stems:
        raise ValueError(f"{path}: names no image; give a list of image names, one a line")
    return stems


def _warn_of_rest(rest: set[str], by_stem: Mapping[str, Path]) -> None:
    if rest:
        names = _some(sorted(by_stem[stem].name for stem in rest))
        print(f"warning: {len(rest)} images are in none of the lists and are left out: {names}", file=sys.stderr)


def _seeded_split(stems: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, set[str]]:
    splits = "train, val and test" if test_fraction else "train and val"
    if len(stems) < (3 if test_fraction else 2):
        raise ValueError(f"{len(stems)} image(s) cannot be divided into {splits}; add images")
    # Ranked by a hash of the name, an image stays where it is when others are added or removed.
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}/{stem}".encode(errors="surrogateescape")).digest())
    reserved = 2 if test_fraction else 1
    val = min(max(1, round(val_fraction * len(stems))), len(stems) - reserved)
    test = min(max(1, round(test_fraction * len(stems))), len(stems) - val - 1) if test_fraction else 0
    split = {"train": set(ranked[val + test :]), "val": set(ranked[:val])}
    return split | ({"test": set(ranked[val : val + test])} if test else {})


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
