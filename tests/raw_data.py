"""Small raw data sets in the layouts of the published ones, and the preprocessing scripts run as commands."""

import json
from pathlib import Path

import numpy as np
import scipy.io

from utils.images import save_jpeg

ROOT = Path(__file__).resolve().parents[1]
TREES = ROOT / "examples" / "trees"
SMALL = ["--min-size", "32", "--max-size", "256", "--workers", "1"]


def save_noise(path, size=(48, 64), seed=0):
    """A JPEG of noise, size (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8), path, 90)
    return path


def make_raw(root, train=6, test=2, size=(48, 64)):
    """A raw data set in QNRF's layout: noise images, two points each, the first image of Train with one outside."""
    rng = np.random.default_rng(0)
    for folder, count in (("Train", train), ("Test", test)):
        (root / folder).mkdir(parents=True)
        for i in range(1, count + 1):
            save_jpeg(rng.integers(0, 256, (*size, 3), dtype=np.uint8), root / folder / f"img_{i:04}.jpg", 90)
            points = rng.uniform(1, 40, (2, 2))
            if folder == "Train" and i == 1:
                points = np.vstack([points, [[10.0, -0.5]]])
            scipy.io.savemat(root / folder / f"img_{i:04}_ann.mat", {"annPoints": points})
    return root


def draw_points(i):
    """The truth of image number i of the layouts below: i points, some with fractions of a pixel."""
    return np.random.default_rng(i).uniform(1, 47, (i, 2)).round(2)


def write(path, contents):
    """Write text, bytes or, as JSON, anything else, with the folders in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(contents, (str, bytes)):
        contents = json.dumps(contents)
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return path


def make_jhu(root, counts=(("train", (0, 1, 5)), ("val", (2, 3)), ("test", (4, 0)))):
    """JHU-Crowd++: sizes of the heads are 4, 5, 6, ... pixels high."""
    for split, numbers in counts:
        for i, count in enumerate(numbers, start=1):
            save_noise(root / split / "images" / f"{i:04}.jpg", seed=i)
            lines = [f"{x} {y} 3 {4 + j} 1 0\n" for j, (x, y) in enumerate(draw_points(count))]
            write(root / split / "gt" / f"{i:04}.txt", "".join(lines))
    return root


def make_nwpu(root, parts=True, kind="mat", lists="{:04} 0 1\n"):
    """NWPU-Crowd: images 1 to 3 train, 4 val, 5 and 6 test; image i has i - 1 points."""
    for i in range(1, 7):
        save_noise(root / (f"images_part{(i + 1) // 2}" if parts else "images") / f"{i:04}.jpg", seed=i)
        if i < 5 and kind == "mat":
            (root / "mats").mkdir(exist_ok=True)
            scipy.io.savemat(root / "mats" / f"{i:04}.mat", {"annPoints": draw_points(i - 1)})
        elif i < 5:
            contents = {"img_id": f"{i:04}.jpg", "human_num": i - 1, "points": draw_points(i - 1).tolist()}
            write(root / "jsons" / f"{i:04}.json", contents)
    for name, numbers in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5, 6))):
        write(root / f"{name}.txt", "".join(lists.format(i) for i in numbers))
    return root


def make_ucf50(folder, images=50):
    """UCF_CC_50: image i has i points, of which number 7 has one far outside, as the published files do."""
    for i in range(1, images + 1):
        save_noise(folder / f"{i}.jpg", seed=i)
        points = draw_points(i)
        if i == 7:
            points[0] = -358, 10
        scipy.io.savemat(folder / f"{i}_ann.mat", {"annPoints": points})
    return folder


def image_info(points):
    """ShanghaiTech's nesting: a cell with a struct of location and number."""
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": np.asarray(points, float).reshape(-1, 2), "number": float(len(points))}
    return info


def make_sh(part, folder="ground_truth", train=10, test=2):
    """A part of ShanghaiTech: image i has i points."""
    for split, count in (("train_data", train), ("test_data", test)):
        (part / split / folder).mkdir(parents=True)
        for i in range(1, count + 1):
            save_noise(part / split / "images" / f"IMG_{i}.jpg", seed=i)
            scipy.io.savemat(part / split / folder / f"GT_IMG_{i}.mat", {"image_info": image_info(draw_points(i))})
    return part


def record(root):
    """The entries of the record by image."""
    entries = [json.loads(line) for line in (root / "preprocess.jsonl").read_text().splitlines()]
    return {entry["image"]: entry for entry in entries}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(folder):
    """The contents of a prepared data set but for its report, which names the folder."""
    return {name: data for name, data in contents(folder).items() if name != "dataset_report.json"}


def times(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def partials(folder):
    return [path for path in folder.rglob("*") if ".partial" in path.name]
