"""Count people with onnxruntime and NumPy alone: python examples/onnx_count.py vgg.onnx photo.jpg

vgg.onnx: python -m models.export --save-path runs/qnrf_vgg --format onnx --out vgg.onnx. Pillow decodes the photograph.
"""

import argparse
import math

import numpy as np
import onnxruntime
from PIL import Image

WINDOW = 512  # pixels; larger images are cut into parts, as in the published evaluation
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # ImageNet's


def cuts(length):
    """The borders of ceil(length / WINDOW) parts; the last one takes the rest."""
    parts = math.ceil(length / WINDOW)
    return [i * (length // parts) for i in range(parts)] + [length]


def count(session, image):
    """uint8 [H, W, 3], RGB -> the number of people."""
    pixels = ((np.float32(image) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]  # [1, 3, H, W]
    rows, columns, total = cuts(image.shape[0]), cuts(image.shape[1]), 0.0
    for top, bottom in zip(rows, rows[1:]):
        for left, right in zip(columns, columns[1:]):
            (density,) = session.run(["density"], {"image": pixels[:, :, top:bottom, left:right]})
            total += float(density.sum(dtype=np.float64))
    return total


def main():
    parser = argparse.ArgumentParser(description="Count people with onnxruntime.")
    parser.add_argument("files", nargs="+", help="the model, then photographs")
    model, *paths = parser.parse_args().files
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for path in paths:
        print(f"{path}: {count(session, np.asarray(Image.open(path).convert('RGB'))):.2f}")


if __name__ == "__main__":
    main()
