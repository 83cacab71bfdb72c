"""Small training runs: their data, a network of a thousand weights, and what a run left behind."""

from __future__ import annotations

import json

import numpy as np
import torch
from commands import call
from torch import nn

from GS2D.gaussians import Gaussians2D
from GS2D.points import mean_neighbour_distance
from models import Prediction
from utils.files import gaussians_path, points_path
from utils.images import save_jpeg


class Tiny(nn.Module):
    """A density network that trains in milliseconds; takes the place of ``build_model``."""

    name = "vgg"
    dropout = 0.1

    def __init__(self, name="vgg", topk=0.3, usenum=18):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Dropout(self.dropout), nn.Conv2d(8, 1, 3, padding=1)
        )

    @property
    def features(self):
        return self.layers[0]

    def forward(self, images):
        if min(images.shape[2:]) < 16:  # as the real ones
            raise ValueError(f"images must be at least 16 x 16 pixels, got {images.shape[2]} x {images.shape[3]}")
        return Prediction(self.layers(images).abs(), ())


def make_data(root):
    """Four training images and one of validation, 80 x 96, with bright squares at the points."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for i in range(count):
            image = root / split / f"IMG_{i:04}.jpg"
            gaussians_path(image).parent.mkdir(parents=True, exist_ok=True)
            points = random.uniform((8, 8), (88, 72), (6 + i, 2)).astype(np.float32)
            pixels = random.integers(0, 60, (80, 96, 3), dtype=np.uint8)
            for x, y in points.astype(int):
                pixels[y - 4 : y + 4, x - 4 : x + 4] = 220
            save_jpeg(pixels, image, 95)
            np.save(points_path(image), np.c_[points, mean_neighbour_distance(points)].astype(np.float32))
            shapes = random.uniform(3, 14, (len(points), 2)), np.zeros((len(points), 1)), np.ones((len(points), 3))
            Gaussians2D(points, *shapes).save(gaussians_path(image))
    return root


def train(data, folder, *options, code=0):
    fixed = ["--data-dir", data, "--device", "cpu", "--backbone-weights", "none", "--crop-size", 64]
    extra = [] if "--num-workers" in options else ["--num-workers", 0]
    return call("train_gs.py", *fixed, "--save-dir", folder, *extra, *options, code=code)


def weights(folder):
    (checkpoint,) = folder.glob("*_ckpt.tar")
    return torch.load(checkpoint, weights_only=True)["model_state_dict"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def largest_difference(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)
