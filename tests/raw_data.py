"""A small raw data set in UCF-QNRF's layout, and preprocess_dataset_ucf.py run as a command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.io

from datasets.images import save_jpeg

ROOT = Path(__file__).resolve().parents[1]
TREES = ROOT / "examples" / "trees"
SMALL = ["--min-size", "32", "--max-size", "256", "--workers", "1"]


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


def script(source, output, *options, **kwargs):
    """Run the script as a user does -> (exit code, stdout, stderr)."""
    paths = ["--input-dataset-path", str(source), "--output-dataset-path", str(output)]
    command = [sys.executable, "preprocess_dataset_ucf.py", *paths, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def partials(folder):
    return [path for path in folder.rglob("*") if ".partial" in path.name]
