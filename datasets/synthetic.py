"""Synthetic crowds in the raw layout of any of the five data sets, with the exact truth beside them.

    python -m datasets.synthetic --layout {qnrf,jhu,nwpu,sha,shb,ucf50} --out P --images 50 --seed 0

For tests and teaching; no substitute for photographs. The same arguments give the same bytes at any number of workers.
P/truth.json holds the heads of every image, unrounded, with or without annotations.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import scipy.io
from numpy.random import Generator

from utils.cli import default_workers, for_each, report_failures, run_script
from utils.config import make_parser, number, parse_arguments
from utils.files import atomic_write, make_folder, read_json, remove_stale_partials, write_json
from utils.images import save_jpeg

# Raw splits with their published numbers of images, which a synthetic set shares out in proportion; the paths of an image
# and of its annotations.
_SHANGHAITECH = "{split}/images/IMG_{n}.jpg", "{split}/ground_truth/GT_IMG_{n}.mat"
LAYOUTS = {
    "qnrf": ({"Train": 1201, "Test": 334}, "{split}/img_{n:04}.jpg", "{split}/img_{n:04}_ann.mat"),
    "jhu": ({"train": 2272, "val": 500, "test": 1600}, "{split}/images/{n:04}.jpg", "{split}/gt/{n:04}.txt"),
    "nwpu": ({"train": 3109, "val": 500, "test": 1500}, "images/{n:04}.jpg", "mats/{n:04}.mat", "jsons/{n:04}.json"),
    "sha": ({"train_data": 300, "test_data": 182}, *(f"part_A_final/{path}" for path in _SHANGHAITECH)),
    "shb": ({"train_data": 400, "test_data": 316}, *(f"part_B_final/{path}" for path in _SHANGHAITECH)),
    "ucf50": ({"": 50}, "{n}.jpg", "{n}_ann.mat"),
}
MIN_HEAD, MAX_HEAD = 3.0, 60.0  # height of a head, pixels
SPACING = 0.7  # least distance of two heads, in heights of a head: neither hides the other's centre
_HEAD_ASPECT = 0.8  # width over height
_TRIES = 20  # places drawn for each head

_SKIN = np.array(((226, 184, 154), (208, 150, 112), (172, 117, 80), (124, 80, 53), (80, 52, 38)))
_HAIR = np.array(((22, 18, 17), (52, 36, 26), (84, 58, 38), (186, 150, 96), (150, 147, 144)))
_CLOTHES = np.array(((26, 27, 31), (92, 94, 98), (232, 230, 224), (142, 124, 104), (180, 52, 54), (50, 86, 148)))


class Scene(NamedTuple):
    """A picture and the N heads in it, in pixels of the picture; pixel (0, 0) covers [0, 1) x [0, 1)."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    points: np.ndarray  # float64 [N, 2], (x, y), centres of the heads, the farthest first
    sizes: np.ndarray  # float64 [N], heights of the heads, 3 to 60


def scene(seed: int, height: int, width: int, people: int) -> Scene:
    """Draw ``people`` on a plane that a camera looks down at; a function of the arguments alone.

    The size of a head grows linearly with the distance of its row from the horizon. Raises ``ValueError`` for more people
    than a picture, which is at least 32 pixels high and wide, can hold.
    """
    rng = np.random.default_rng([seed, height, width, people])
    horizon = height * rng.uniform(-0.6, 0.25)
    largest = min(MAX_HEAD, 0.22 * min(height, width))
    nearest = math.exp(rng.uniform(math.log(min(10, largest)), math.log(largest)))  # a head's size in the last row
    while True:
        size = np.clip(nearest * (np.arange(height) + 0.5 - horizon) / (height - horizon), MIN_HEAD, MAX_HEAD)
        size[: max(0, math.ceil(horizon + 0.06 * (height - horizon)))] = np.inf  # sky, where nobody stands
        points = _places(rng, size, width, people)
        if len(points) == people:
            break
        if nearest <= MIN_HEAD:
            raise ValueError(f"{people} people do not fit into {width} x {height} pixels; lower their number")
        nearest = max(MIN_HEAD, 0.85 * nearest)
    points = points[np.argsort(points[:, 1], kind="stable")]
    sizes = size[points[:, 1].astype(int)]
    return Scene(_paint(rng, points, sizes, size, width), points, sizes)


def _places(rng: Generator, size: np.ndarray, width: int, people: int) -> np.ndarray:
    """Up to ``people`` places (x, y), ``SPACING`` apart, denser with the distance."""
    height, count = len(size), _TRIES * people
    weights = size ** -rng.uniform(0.5, 2)
    y = rng.choice(height, count, p=weights / weights.sum()) + rng.random(count)
    x = rng.uniform(0, width, count)
    places, taken = [], np.zeros((height, width), np.uint8)
    for place in zip(x.tolist(), y.tolist(), strict=True):
        if len(places) == people:
            break
        column, row = int(place[0]), int(place[1])
        if not taken[row, column]:
            places.append(place)
            # The pixel that holds the place spreads by its own size.
            cv2.circle(taken, (column, row), math.ceil(SPACING * size[row]) + 1, 1, -1)
    return np.array(places).reshape(-1, 2)


def _paint(rng: Generator, points: np.ndarray, sizes: np.ndarray, size: np.ndarray, width: int) -> np.ndarray:
    """The picture, uint8 [H, W, 3]: ground and sky, the people from the farthest to the nearest, then lens and sensor."""
    noise = cv2.resize(rng.standard_normal((len(size) // 4, width // 4)), (width, len(size)))
    ground = rng.uniform(100, 140, 3) * (1 + 0.12 * noise[:, :, None])
    ground[~np.isfinite(size)] = 150, 185, 225  # sky
    picture = ground.clip(0, 255).astype(np.uint8)
    length = rng.uniform(2, 6)  # of a body in heads: a camera high above sees it shortened
    kinds = [rng.integers(0, len(colors), len(points)) for colors in (_SKIN, _HAIR, _CLOTHES)]
    for (x, y), head, skin, hair, clothes in zip(points, sizes, *kinds, strict=True):
        _paint_person(picture, x, y, head, length, _SKIN[skin], _HAIR[hair], _CLOTHES[clothes])
    photograph = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.8)) * rng.uniform(0.7, 1.15)
    photograph += rng.normal(0, rng.uniform(1, 5), picture.shape)
    return np.clip(np.rint(photograph), 0, 255).astype(np.uint8)


def _paint_person(picture: np.ndarray, x: float, y: float, size: float, length: float, skin, hair, clothes) -> None:
    """Shadow, body, head and hair of one person, whose head of height ``size`` has its centre in (x, y)."""

    def oval(dx: float, dy: float, rx: float, ry: float, color: np.ndarray, arc: tuple[int, int] = (0, 360)) -> None:
        # OpenCV counts from the centre of the first pixel, here in sixteenths.
        center = round(16 * (x + dx * size - 0.5)), round(16 * (y + dy * size - 0.5))
        axes = max(8, round(16 * rx * size)), max(8, round(16 * ry * size))
        cv2.ellipse(picture, center, axes, 0, *arc, color.tolist(), -1, cv2.LINE_AA, 4)

    oval(0.3, length + 0.3, 1.0, 0.25, np.array((45, 45, 50)))
    oval(0, 0.4 + length / 2, 0.8, length / 2, clothes)
    oval(0, 0, _HEAD_ASPECT / 2, 0.5, skin)
    oval(0, 0, _HEAD_ASPECT / 2, 0.5, hair, (190, 350))


def annotation_bytes(layout: str, path: str, drawn: Scene) -> bytes:
    """The contents of the annotation file ``path``."""
    if layout == "jhu":
        heads = np.rint(np.hstack([drawn.points, drawn.sizes[:, None] * (_HEAD_ASPECT, 1)])).astype(int)
        return "".join(f"{x} {y} {w} {h} 1 0\n" for x, y, w, h in heads).encode()
    if path.endswith(".json"):
        return json.dumps({"human_num": len(drawn.points), "points": drawn.points.tolist()}).encode()
    content = {"annPoints": drawn.points}
    if layout in ("sha", "shb"):  # a cell with a struct
        content = {"image_info": np.empty((1, 1), object)}
        content["image_info"][0, 0] = {"location": drawn.points, "number": float(len(drawn.points))}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    # The first 116 bytes are a text in which the library notes the time.
    return b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]


def draw_item(root: Path, settings: Mapping[str, Any], item: tuple[int, str, list[str]]) -> dict[str, Any]:
    """Draw one of ``make_items``, write it with its annotations and return its line of the truth; ``settings``: the options."""
    index, split, (image, *annotations) = item
    rng = np.random.default_rng([settings["seed"], index])
    layout, height, width, low, high = map(settings.get, ("layout", "height", "width", "min_people", "max_people"))
    if layout != "shb":  # the one data set whose images are all of one size
        factor = rng.uniform(0.7, 1.3)
        height, width = max(32, round(height * factor)), max(32, round(width * factor * rng.uniform(0.9, 1.1)))
    people = 0 if low == 0 and rng.random() < 0.03 else round(np.exp(rng.uniform(*np.log([max(low, 1), max(high, 1)]))))
    drawn = scene(int(rng.integers(2**31)), height, width, min(people, high, height * width // 80))
    for path in annotations:
        _write(root / path, annotation_bytes(layout, path, drawn))
    save_jpeg(drawn.image, root / image, 92)
    truth = {"image": image, "split": split, "height": height, "width": width}
    return {**truth, "points": drawn.points.tolist(), "sizes": drawn.sizes.tolist()}


def _write(path: Path, contents: bytes) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(contents)


def make_items(layout: str, images: int) -> list[tuple[int, str, list[str]]]:
    """Index, split and files, the image first, of all there is to draw: shared out in proportion, at least one to each split."""
    published, *paths = LAYOUTS[layout]
    if images < len(published):
        raise ValueError(f"--images {images}: {layout} has {len(published)} splits; give {len(published)} or more")
    shares = [max(1, round(images * share / sum(published.values()))) for share in published.values()]
    shares[0] = images - sum(shares[1:])
    items: list[tuple[int, str, list[str]]] = []
    for split, share in zip(published, shares, strict=True):
        first = len(items) if layout in ("jhu", "nwpu") else 0  # the others count each split from 1
        files = paths[:1] if (layout, split) == ("nwpu", "test") else paths  # whose authors keep the annotations
        for n in range(first + 1, first + share + 1):
            items.append((len(items), split, [path.format(split=split, n=n) for path in files]))
    return items


def main() -> int:
    """Draw all images."""
    parser = make_parser("Write synthetic crowds in the raw layout of a data set.")
    parser.add_argument("--layout", choices=list(LAYOUTS), required=True, help="data set whose layout is written")
    parser.add_argument("--out", type=Path, required=True, metavar="P", help="folder to write to")
    parser.add_argument("--images", type=number(int, 2), default=50, help="number of images in all splits together")
    parser.add_argument("--height", type=number(int, 32), default=768, help="average height, pixels")
    parser.add_argument("--width", type=number(int, 32), default=1024, help="average width, pixels")
    parser.add_argument("--min-people", type=number(int, 0), default=0, help="fewest people in an image")
    parser.add_argument("--max-people", type=number(int, 0), default=1000, help="most people, one for 80 pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of everything drawn")
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    arguments = parse_arguments(parser)
    if arguments.min_people > arguments.max_people:
        parser.error(f"--min-people {arguments.min_people} is greater than --max-people {arguments.max_people}")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "workers", "config")}
    root, items = make_folder(arguments.out), make_items(arguments.layout, arguments.images)
    truth = root / "truth.json"
    if (before := read_json(truth, {}).get("settings", settings)) != settings:
        raise ValueError(f"{root}: holds images of other arguments ({before}); choose another --out")
    for folder in {root, *((root / path).parent for _, _, files in items for path in files)}:
        remove_stale_partials(make_folder(folder))
    write_json(truth, {"settings": settings, "images": []})  # until all are drawn
    for name in LAYOUTS["nwpu"][0] if arguments.layout == "nwpu" else ():  # its lists: id, luminance, density level
        ids = [Path(files[0]).stem for _, split, files in items if split == name]
        _write(root / f"{name}.txt", "".join(f"{i} {int(i) % 3} {int(i) % 5}\n" for i in ids).encode())
    outcomes = list(for_each(partial(draw_item, root, settings), items, arguments.workers, "draw"))
    images = [outcome.result for outcome in outcomes if outcome.error is None]
    write_json(truth, {"settings": settings, "images": images})
    print(f"{root}: {len(images)} images with {sum(len(entry['points']) for entry in images):,} heads")
    return report_failures(outcomes)


if __name__ == "__main__":
    run_script(main)
