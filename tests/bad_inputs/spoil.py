"""What inputs are spoiled with: the folder that every case begins with, and the ways to make files that are wrong."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from commands import call
from PIL import Image
from raw_data import make_raw, save_noise, write
from training_runs import Tiny, make_data

from utils.files import gaussians_path, kernel_path, points_path


class Work:
    """A folder with raw and prepared data; names of the files that are spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.raw, self.data, self.mine = (folder, folder / "raw", folder / "data", folder / "mine")
        self.raw_image = self.raw / "Train" / "img_0001.jpg"
        self.mat, self.twin = self.raw_image.with_name("img_0001_ann.mat"), self.raw_image.with_suffix(".png")
        self.image, self.of_val = self.data / "train" / "IMG_0000.jpg", self.data / "val" / "IMG_0000.jpg"
        self.npy, self.gs, self.kernel = points_path(self.image), gaussians_path(self.image), kernel_path(self.image)
        self.weights, self.config = folder / "best_model.pth", folder / "config.yml"


def make_work(folder: Path) -> None:
    """What all cases begin with."""
    work = Work(folder)
    make_raw(work.raw, train=3, test=1)
    make_data(work.data)
    call("GS2D/build_kernels.py", "--root-path", work.data, "--workers", 1)
    for name in "abc":
        save_noise(work.mine / f"{name}.jpg")
    torch.save(Tiny().state_dict(), work.weights)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG under the name of ``path``, whatever that says."""
    Image.fromarray(pixels).save(path, "PNG")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    write(path, "<html>404 Not Found</html>\n")


def mine(name: str, contents) -> Callable[[Work], object]:
    return lambda work: write(work.mine / name, contents)


def params(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Work], None]:
    """Write the file of Gaussians anew with what ``change`` makes of them."""

    def spoil(work: Work) -> None:
        with h5py.File(work.gs) as file:
            rows = change(file["params"][()])
        with h5py.File(work.gs, "w") as file:
            file["params"] = rows

    return spoil


def one_scale(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Exchanges one scale of one Gaussian."""

    def change(rows: np.ndarray) -> np.ndarray:
        rows[1, 2] = value
        return rows

    return change


def kernels(change: Callable[[h5py.File], object]) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        with h5py.File(work.kernel, "r+") as file:
            change(file)

    return spoil


def kernel_array(name: str, index: int, value: float) -> Callable[[Work], None]:
    def change(file: h5py.File) -> None:
        values = file[name][()]
        values[index] = value
        del file[name]
        file[name] = values

    return kernels(change)


def save(content) -> Callable[[Work], object]:
    return lambda work: torch.save(content, work.weights)


def bomb(work: Work) -> None:
    """Twenty megabytes of zeros in a checkpoint of a few ten kilobytes."""
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(5_000_000)}, plain)
    packed = zipfile.ZipFile(work.weights, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(plain) as source, packed as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))


class Foreign:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return os.system, ("echo executed",)


def coco(annotations: list[dict]) -> dict:
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")]
    return {"images": images, "annotations": annotations}
