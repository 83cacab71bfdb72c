"""Count people with onnxruntime and NumPy, without PyTorch: python examples/onnx_count.py vgg.onnx photo.jpg

vgg.onnx: python -m models.export --save-path runs/qnrf_vgg --format onnx --out vgg.onnx. ``count`` stands for itself; the
project decodes the photograph, as for test.py --images.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import one_line, run_script
from utils.images import load_image

WINDOW = 512  # pixels; larger images are cut into parts, as in the published evaluation
SMALLEST = 16  # pixels, the networks' coarsest stride
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # ImageNet's


def cuts(length):
    """The borders of ceil(length / WINDOW) parts; the last one takes the rest."""
    parts = math.ceil(length / WINDOW)
    return [i * (length // parts) for i in range(parts)] + [length]


def count(session, image):
    """uint8 [H, W, 3], RGB -> the number of people. Raises ``ValueError`` for an image that is too small."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"images must be at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}: enlarge or pad them"
        )
    pixels = ((np.float32(image) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]  # [1, 3, H, W]
    rows, columns, total = cuts(height), cuts(width), 0.0
    for top, bottom in zip(rows, rows[1:]):
        for left, right in zip(columns, columns[1:]):
            (density,) = session.run(["density"], {"image": pixels[:, :, top:bottom, left:right]})
            total += float(density.sum(dtype=np.float64))
    return total


def main():
    parser = argparse.ArgumentParser(description="Count people with onnxruntime.")
    parser.add_argument("files", nargs="+", help="the model, then photographs")
    model, *paths = parser.parse_args().files
    session, failed = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), False
    for path in paths:
        try:
            print(f"{path}: {count(session, load_image(path, upright=True)):.2f}")
        except (OSError, ValueError) as error:
            failed = True
            reason = one_line(error)
            print(f"error: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    run_script(main)
