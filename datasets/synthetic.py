"""Synthetic crowds in the raw layout of any of the five data sets, with the exact truth beside them.

    python -m datasets.synthetic --layout {qnrf,jhu,nwpu,sha,shb} --out P --images 50 --seed 0

For tests, for scaling runs and for teaching; no substitute for photographs. The same arguments give the same bytes at any
number of workers. An interrupted run goes on where it stopped. P/truth.json holds the heads of every image, also of those
whose layout has no annotations (NWPU-Crowd's test split) or rounds them (JHU-Crowd++, to whole pixels).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from datasets.images import save_jpeg
from datasets.synthetic_scene import Scene, scene
from utils.cli import default_workers, for_each, report_failures, run_script
from utils.config import make_parser, number, parse_arguments
from utils.files import atomic_write, make_folder, remove_stale_partials

# Raw splits with their published numbers of images, which a synthetic set shares out in proportion.
SPLITS = {
    "qnrf": {"Train": 1201, "Test": 334},
    "jhu": {"train": 2272, "val": 500, "test": 1600},
    "nwpu": {"train": 3109, "val": 500, "test": 1500},
    "sha": {"train_data": 300, "test_data": 182},
    "shb": {"train_data": 400, "test_data": 316},
}
_PIXELS_PER_HEAD = 80
_JPEG_QUALITY = 92
_TRUTH, _PROGRESS = "truth.json", "truth.jsonl"


class Item(NamedTuple):
    """One image to draw; ``number`` counts as the layout's file names do, ``index`` through all splits."""

    root: Path
    layout: str
    split: str
    number: int
    index: int
    seed: int
    size: tuple[int, int]  # height and width that images have on average
    people: tuple[int, int]  # fewest and most


def files_of(item: Item) -> list[Path]:
    """The image, then its annotations, relative to the root."""
    name, split = f"{item.number:04}", Path(item.split)
    if item.layout == "qnrf":
        return [split / f"img_{name}.jpg", split / f"img_{name}_ann.mat"]
    if item.layout == "jhu":
        return [split / "images" / f"{name}.jpg", split / "gt" / f"{name}.txt"]
    if item.layout == "nwpu":
        annotations = [Path("mats") / f"{name}.mat", Path("jsons") / f"{name}.json"]
        return [Path("images") / f"{name}.jpg", *(annotations if item.split != "test" else [])]
    folder = Path(f"part_{item.layout[-1].upper()}_final") / split
    return [folder / "images" / f"IMG_{item.number}.jpg", folder / "ground_truth" / f"GT_IMG_{item.number}.mat"]


def draw_item(item: Item) -> dict[str, Any]:
    """Draw one image, write it with its annotations and return its line of the truth."""
    rng = np.random.default_rng([item.seed, item.index])
    height, width = item.size
    if item.layout != "shb":  # the one data set whose images are all of one size
        factor = rng.uniform(0.7, 1.3)
        height, width = max(32, round(height * factor)), max(32, round(width * factor * rng.uniform(0.9, 1.1)))
        if rng.random() < 0.15:
            height, width = width, height
    low, high = item.people
    people = 0 if low == 0 and rng.random() < 0.03 else round(np.exp(rng.uniform(*np.log([max(low, 1), max(high, 1)]))))
    people = min(people, high, height * width // _PIXELS_PER_HEAD)
    drawn = scene(int(rng.integers(2**31)), height, width, people)
    image, *annotations = files_of(item)
    for path in annotations:
        _WRITERS[item.layout, path.suffix](item.root / path, drawn, item)
    grey = (drawn.image == drawn.image[:, :, :1]).all()
    # The image comes last, so that one that is there is whole with all that belongs to it.
    save_jpeg(drawn.image[:, :, 0] if grey else drawn.image, item.root / image, _JPEG_QUALITY)
    return {
        "image": image.as_posix(),
        "split": item.split,
        "height": height,
        "width": width,
        "points": drawn.points.tolist(),
        "sizes": drawn.sizes.tolist(),
    }


def _write_mat(path: Path, **contents: Any) -> None:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, contents)
    # The first 116 bytes are a text in which the library notes the time.
    _write(path, b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:])


def _write(path: Path, contents: bytes) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(contents)


def _corners(drawn: Scene) -> np.ndarray:
    """Boxes as NWPU-Crowd has them: left, top, right, bottom."""
    return np.hstack([drawn.boxes[:, :2], drawn.boxes[:, :2] + drawn.boxes[:, 2:]])


def _write_qnrf(path: Path, drawn: Scene, item: Item) -> None:
    _write_mat(path, annPoints=drawn.points)


def _write_jhu(path: Path, drawn: Scene, item: Item) -> None:
    heads = np.rint(np.hstack([drawn.points, drawn.boxes[:, 2:]])).astype(int)
    _write(path, "".join(f"{x} {y} {w} {h} 1 0\n" for x, y, w, h in heads).encode())


def _write_nwpu_mat(path: Path, drawn: Scene, item: Item) -> None:
    _write_mat(path, annPoints=drawn.points, annBoxes=_corners(drawn))


def _write_nwpu_json(path: Path, drawn: Scene, item: Item) -> None:
    contents = {"img_id": f"{item.number:04}.jpg", "human_num": len(drawn.points)}
    contents |= {"points": drawn.points.tolist(), "boxes": _corners(drawn).tolist()}
    _write(path, json.dumps(contents).encode())


def _write_shanghai(path: Path, drawn: Scene, item: Item) -> None:
    info = np.empty((1, 1), [("location", object), ("number", object)])
    info[0, 0] = drawn.points, np.array([[len(drawn.points)]])
    cell = np.empty((1, 1), object)
    cell[0, 0] = info
    _write_mat(path, image_info=cell)


_WRITERS: Mapping[tuple[str, str], Callable[[Path, Scene, Item], None]] = {
    ("qnrf", ".mat"): _write_qnrf,
    ("jhu", ".txt"): _write_jhu,
    ("nwpu", ".mat"): _write_nwpu_mat,
    ("nwpu", ".json"): _write_nwpu_json,
    ("sha", ".mat"): _write_shanghai,
    ("shb", ".mat"): _write_shanghai,
}


def make_items(
    root: Path, layout: str, images: int, seed: int, size: tuple[int, int], people: tuple[int, int]
) -> list[Item]:
    """What there is to draw: ``images`` shared out to the splits in proportion, at least one each."""
    published = SPLITS[layout]
    if images < len(published):
        raise ValueError(f"--images {images}: {layout} has {len(published)} splits; give {len(published)} or more")
    shares = [max(1, round(images * share / sum(published.values()))) for share in published.values()]
    shares[0] = images - sum(shares[1:])
    items: list[Item] = []
    for split, share in zip(published, shares, strict=True):
        first = len(items) if layout in ("jhu", "nwpu") else 0  # the others count each split from 1
        items += [Item(root, layout, split, first + i + 1, len(items) + i, seed, size, people) for i in range(share)]
    return items


def _write_lists(items: Sequence[Item]) -> None:
    """NWPU-Crowd's lists: id, luminance and density level."""
    for split in SPLITS["nwpu"]:
        lines = [f"{item.number:04} {item.index % 3} {item.index % 5}\n" for item in items if item.split == split]
        _write(items[0].root / f"{split}.txt", "".join(lines).encode())


def _read_truth(root: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The images that earlier runs with the same settings finished; a line that a kill cut off does not count."""
    entries: list[dict[str, Any]] = []
    found = []
    if (root / _TRUTH).exists():
        contents = json.loads((root / _TRUTH).read_text(encoding="utf-8"))
        found.append(contents["settings"])
        entries += contents["images"]
    if (root / _PROGRESS).exists():
        for line in (root / _PROGRESS).read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            (entries if "image" in entry else found).append(entry)
    if any(other != settings for other in found):
        raise ValueError(f"{root}: holds images of other arguments ({found[0]}); choose another --out")
    return {entry["image"]: entry for entry in entries}


def main() -> int:
    """Draw what is missing."""
    parser = make_parser("Write synthetic crowds in the raw layout of a data set.")
    parser.add_argument("--layout", choices=list(SPLITS), required=True, help="data set whose layout is written")
    parser.add_argument("--out", type=Path, required=True, metavar="P", help="folder to write to")
    parser.add_argument("--images", type=number(int, 2), default=50, help="number of images in all splits together")
    parser.add_argument("--height", type=number(int, 32), default=768, help="average height, pixels")
    parser.add_argument("--width", type=number(int, 32), default=1024, help="average width, pixels")
    parser.add_argument("--min-people", type=number(int, 0), default=0, help="fewest people in an image")
    parser.add_argument(
        "--max-people",
        type=number(int, 0),
        default=1000,
        help=f"most people in an image, where it has {_PIXELS_PER_HEAD} pixels for each",
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of everything drawn")
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    arguments = parse_arguments(parser)
    if arguments.min_people > arguments.max_people:
        parser.error(f"--min-people {arguments.min_people} is greater than --max-people {arguments.max_people}")
    names = ("layout", "images", "height", "width", "min_people", "max_people", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    root, size = make_folder(arguments.out), (arguments.height, arguments.width)
    people = arguments.min_people, arguments.max_people
    items = make_items(root, arguments.layout, arguments.images, arguments.seed, size, people)
    truth = _read_truth(root, settings)
    for folder in {root, *((root / path).parent for item in items for path in files_of(item))}:
        remove_stale_partials(make_folder(folder))
    if arguments.layout == "nwpu":
        _write_lists(items)
    todo = []
    for item in items:
        files = files_of(item)
        if files[0].as_posix() not in truth or not all((root / path).exists() for path in files):
            todo.append(item)
    outcomes = list(_draw_all(root, todo, truth, settings, arguments.workers))
    code = report_failures(outcomes)
    if code == 0:
        images = [truth[files_of(item)[0].as_posix()] for item in items]
        _write(root / _TRUTH, (json.dumps({"settings": settings, "images": images}) + "\n").encode())
        (root / _PROGRESS).unlink(missing_ok=True)
    heads = sum(len(entry["points"]) for entry in truth.values())
    print(f"{root}: {len(truth)} images with {heads:,} heads, {len(items) - len(todo)} of them were there")
    return code


def _draw_all(root: Path, todo: Sequence[Item], truth: dict[str, Any], settings: Mapping[str, Any], workers: int):
    if not todo:
        return
    _write(root / _PROGRESS, "".join(json.dumps(entry) + "\n" for entry in (settings, *truth.values())).encode())
    with (root / _PROGRESS).open("a", encoding="utf-8") as progress:
        for outcome in for_each(draw_item, todo, workers, "draw"):
            if outcome.error is None:
                truth[outcome.result["image"]] = outcome.result
                progress.write(json.dumps(outcome.result) + "\n")
                progress.flush()
            yield outcome


if __name__ == "__main__":
    run_script(main)
