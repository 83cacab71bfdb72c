"""Small training runs: their data, a network of a thousand weights, and what a run left behind."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import torch
from commands import call, free_port
from forked import Started
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


def clean(root):
    """Round the Gaussians of training and remove those of validation, so that training comes next."""
    shutil.rmtree(root / "val" / "gs_params")
    for path in (root / "train" / "gs_params").glob("*.h5"):
        gaussians = Gaussians2D.load(path)
        gaussians.scales[:, 1] = gaussians.scales[:, 0]
        gaussians.save(path)
    return root


def options_of(data, folder, *options):
    """The options of a small run; those given come last, and win."""
    fixed = "--device cpu --backbone-weights none --crop-size 64 --num-workers 0".split()
    return [*fixed, "--data-dir", data, "--save-dir", folder, *options]


def train(data, folder, *options, code=0):
    return call("train_gs.py", *options_of(data, folder, *options), code=code)


def start(data, folder, *options, **environment):
    """The same in a process of its own, the first of a group."""
    return Started("train_gs.py", options_of(data, folder, *options), **environment)


def two_processes(data, folder, *options, machines=1, **environment):
    """A training of two processes as ``torchrun`` starts them, on one machine or two -> exit code, stdout, stderr of each."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    world["LOCAL_WORLD_SIZE"] = str(2 // machines)
    runs = []
    for rank in "01":
        on_own = {"LOCAL_RANK": "0", "GROUP_RANK": rank}
        place = {"RANK": rank, **(on_own if machines == 2 else {"LOCAL_RANK": rank, "GROUP_RANK": "0"})}
        runs.append(start(data, folder, *options, "--num-nodes", machines, **world, **place, **environment))
    outputs = [run.communicate() for run in runs]
    return [(run.returncode, *output) for run, output in zip(runs, outputs)]


def wait_until(condition, run):
    """Return when ``condition`` holds, while ``run`` works: a ``Started``, or a process of ``multiprocessing``."""
    while not condition():
        assert getattr(run, "process", run).exitcode is None, run
        time.sleep(0.02)


class Recorded:
    """What each step found and left: rates, weight decay, gradient, weights, moments; the shapes of the training batches."""

    def __init__(self, monkeypatch):
        self.rates, self.decays, self.gradients, self.weights, self.moments, self.shapes = ([] for _ in range(6))
        step, forward = torch.optim.Adam.step, Tiny.forward

        def recorded_step(optimizer, *args, **kwargs):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self.rates.append([group["lr"] for group in optimizer.param_groups])
            self.decays.append(optimizer.param_groups[0]["weight_decay"])
            self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
            step(optimizer, *args, **kwargs)
            self.weights.append([parameter.detach().clone() for parameter in parameters])
            moments = [value for entry in optimizer.state.values() for value in entry.values()]
            self.moments.append([value.clone() for value in moments])

        def recorded_forward(network, images):
            self.shapes.extend([tuple(images.shape)] * network.training)
            return forward(network, images)

        monkeypatch.setattr(torch.optim.Adam, "step", recorded_step)
        monkeypatch.setattr(Tiny, "forward", recorded_forward)

    @property
    def norms(self):
        return [float(gradient.norm()) for gradient in self.gradients]


def checkpoint(folder):
    (path,) = folder.glob("*_ckpt.tar")
    return torch.load(path, weights_only=True)


def weights(folder):
    return checkpoint(folder)["model_state_dict"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def largest_difference(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)
