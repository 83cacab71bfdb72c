"""Which images of the raw training set become ``train`` and which ``val``."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.annotations import prepared_stem
from utils.files import IMAGE_SUFFIXES, atomic_write

_SPLITS = ("train", "val")


def split_train_val(
    images: Sequence[Path],
    root: Path,
    *,
    train_list: Path | None,
    val_list: Path | None,
    val_fraction: float,
    seed: int,
) -> dict[str, list[Path]]:
    """Divide the raw training images, say how, and write the result to ``root/split.json``.

    With lists (one image name a line) the lists decide; with only one of them the other split is the rest. Without
    lists ``val_fraction`` of the images is drawn; a ``split.json`` for the same seed, fraction and images is used as it
    stands. Raises ``ValueError`` or ``OSError``, naming the file, for lists that cannot be read or do not fit.
    """
    by_stem = {prepared_stem(image.stem): image for image in images}
    origin = {
        "train_list": str(train_list) if train_list else None,
        "val_list": str(val_list) if val_list else None,
        "val_fraction": None if train_list or val_list else val_fraction,
        "seed": None if train_list or val_list else seed,
    }
    path, stored = root / "split.json", None
    if train_list or val_list:
        stems = _split_by_lists(by_stem, train_list, val_list)
    else:
        stored = _stored_split(path, origin, by_stem)
        stems = stored or _seeded_split(list(by_stem), val_fraction, seed)
    split = {name: [by_stem[stem] for stem in sorted(stems[name])] for name in _SPLITS}
    for name in _SPLITS:
        if not split[name]:
            raise ValueError(f"{train_list or val_list}: leaves no image for {name}; correct the lists")
    names = {name: [image.name for image in split[name]] for name in _SPLITS}
    text = (json.dumps(origin | names, indent=1) + "\n").encode()
    if not path.exists() or path.read_bytes() != text:
        with atomic_write(path) as partial:
            partial.write_bytes(text)
    how = (
        "by the lists given"
        if train_list or val_list
        else f"no lists given, seed {seed}, val fraction {val_fraction:g}"
    )
    kept = "kept from" if stored else "written to"
    print(f"split: {len(split['train'])} train and {len(split['val'])} val images ({how}), {kept} {path}")
    return split


def _split_by_lists(by_stem: Mapping[str, Path], train_list: Path | None, val_list: Path | None) -> dict[str, set[str]]:
    train = _read_list(train_list, by_stem) if train_list else set(by_stem)
    val = _read_list(val_list, by_stem) if val_list else set(by_stem) - train
    if not train_list:
        train -= val
    both = sorted(train & val)
    if both:
        raise ValueError(f"{val_list}: {_some(both)} also in {train_list}; an image belongs to one of the two lists")
    neither = sorted(by_stem[stem].name for stem in set(by_stem) - train - val)
    if neither:
        print(f"warning: {len(neither)} images are in neither list and are left out: {_some(neither)}", file=sys.stderr)
    return {"train": train, "val": val}


def _read_list(path: Path, by_stem: Mapping[str, Path]) -> set[str]:
    """The stems that a list names, one a line, with or without the image's suffix; blank lines do not count."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a UTF-8 text file; give a list of image names, one a line") from None
    stems = set()
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        stem = Path(name).stem if name.lower().endswith(IMAGE_SUFFIXES) else name
        if prepared_stem(stem) not in by_stem:
            raise ValueError(f"{path}: line {number}: the input has no image {name}; correct the list")
        stems.add(prepared_stem(stem))
    if not stems:
        raise ValueError(f"{path}: names no image; give a list of image names, one a line")
    return stems


def _seeded_split(stems: Sequence[str], val_fraction: float, seed: int) -> dict[str, set[str]]:
    if len(stems) < 2:
        raise ValueError(f"{len(stems)} training image(s) cannot be divided into train and val; add images")
    # Ranked by a hash of the name, an image stays where it is when others are added or removed.
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}/{stem}".encode(errors="surrogateescape")).digest())
    count = min(max(1, round(val_fraction * len(stems))), len(stems) - 1)
    return {"train": set(ranked[count:]), "val": set(ranked[:count])}


def _stored_split(path: Path, origin: Mapping[str, object], by_stem: Mapping[str, Path]) -> dict[str, set[str]] | None:
    """The split of an earlier run, if it was made the same way and of the same images."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if any(stored.get(key) != value for key, value in origin.items()):
            return None
        names = {name: [prepared_stem(Path(image).stem) for image in stored[name]] for name in _SPLITS}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a split that this script wrote; delete it to have it made anew") from None
    if sorted(names["train"] + names["val"]) != sorted(by_stem):
        return None
    return {name: set(stems) for name, stems in names.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
