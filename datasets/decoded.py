"""Decoded pixels on disk: a crop is read out of a file that is mapped into memory, instead of an image that is decoded for it.

    python -m datasets.decoded --data-dir data/UCF-Train-Val-Test

writes those of the training images at once; training writes them by the way, as it first reads each image. A file is an .npy,
uint8 [H, W, 3], and after the array 256 bytes that say of which image: its size, times and SHA-256, and the CRC-32 of the pixels. All
loading processes, runs and GPUs of a machine share it through the system's page cache. The checksum (1 ms for 8 MB) is computed when a
process first reads a file and after the file was touched; the command above checks all, and writes again what it finds changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from utils.cli import default_workers, for_each, report_failures, run_script
from utils.config import make_parser, number
from utils.files import atomic_write, list_images, make_folder, remove_stale_partials
from utils.images import PiecewiseImage, image_size, load_image, open_image

RESERVE = 1 << 30  # bytes of a disk that stay free, for checkpoints and others
_NOTE = 256  # bytes after the array
_WAITING = 2  # images that may wait for the disk in each process; further ones are written in the next epoch


class DecodedPixels:
    """The decoded pixels of images in ``folder``, for any number of processes, forked from this one or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # where one process finds the disk full, all stop
        self._same: dict[str, tuple] = {}  # images whose times changed and whose contents did not, in this process
        self._checked: dict[str, tuple[int, bool]] = {}  # pixel files: their time when their checksum was right, or not
        self._writing: tuple[int, ThreadPoolExecutor, list[Future]] = (0, None, [])

    def path(self, image: Path) -> Path:
        return self.folder / f"{image.stem}.npy"

    def read(self, image: Path, check: bool = True) -> np.ndarray | None:
        """uint8 [H, W, 3], mapped and read-only; None where there is no file, or one of another image, cut off or changed.

        Without ``check`` its pixels are taken to be unchanged.
        """
        try:
            with self.path(image).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                written = os.fstat(file.fileno()).st_mtime_ns
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        try:
            note = json.loads(mapped[-_NOTE:])
            height, width = note["shape"]
            first = len(mapped) - _NOTE - 3 * height * width
            if mapped[: npy.MAGIC_LEN] != npy.magic(1, 0) or first % npy.ARRAY_ALIGN or not self._is_of(image, note):
                return None
            pixels = np.frombuffer(mapped, np.uint8, 3 * height * width, first).reshape(height, width, 3)
            checksum = int(note["crc32"])
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            return None
        return None if check and not self._is_whole(image, pixels, checksum, written) else pixels

    def _is_whole(self, image: Path, pixels: np.ndarray, checksum: int, written: int) -> bool:
        """Whether the pixels are those that were written; computed once for each time of the file, and said once."""
        known, whole = self._checked.get(image.name, (None, False))
        if known != written:
            whole = zlib.crc32(pixels) == checksum
            self._checked[image.name] = written, whole
            if not whole:
                print(
                    f"\n{self.path(image)}: changed since it was written; {image.name} is decoded again",
                    file=sys.stderr,
                )
        return whole

    def _is_of(self, image: Path, note: dict) -> bool:
        """Whether ``note`` is about the image as it is now: by size and times, or else by its contents."""
        state = _state(image)
        if note["state"] == list(state) or self._same.get(image.name) == state:
            return True
        if note["state"][0] != state[0] or note["sha256"] != _sha256(image):
            return False
        self._same[image.name] = state
        return True

    def write(self, image: Path, pixels: np.ndarray, state: tuple[int, int, int]) -> None:
        """Store the pixels of an image, which had ``state`` before it was read; whole or not at all. Raises ``OSError``."""
        if shutil.disk_usage(self.folder).free < pixels.nbytes + RESERVE:
            raise OSError(
                f"{self.folder}: less than {RESERVE / 1e9:.0f} GB are left on this disk; give --pixels-dir another"
            )
        pixels = np.ascontiguousarray(pixels)
        try:
            digest, now = _sha256(image), _state(image)
        except OSError:
            return  # removed meanwhile
        if now != state:
            return  # replaced meanwhile
        note = {"shape": pixels.shape[:2], "state": state, "sha256": digest, "crc32": zlib.crc32(pixels)}
        with atomic_write(self.path(image)) as partial, partial.open("wb") as file:
            npy.write_array(file, pixels, (1, 0))
            file.write(json.dumps(note).encode().ljust(_NOTE - 1) + b"\n")

    def load(self, image: Path) -> np.ndarray | PiecewiseImage:
        """uint8 [H, W, 3]: stored pixels, or those of the image, which a thread then stores. Raises as ``load_image`` does.

        Where they cannot be stored now, ``open_image`` gives what is asked for.
        """
        pixels = self.read(image)
        if pixels is not None:
            return pixels
        pid, thread, waiting = self._writing
        if pid != os.getpid():  # threads do not survive a fork
            thread, waiting = ThreadPoolExecutor(1), []
        waiting = [future for future in waiting if not future.done()]
        if int(self._ended) or len(waiting) == _WAITING:
            return open_image(image)
        state = _state(image)
        pixels = load_image(image)
        waiting.append(thread.submit(self._try_to_write, image, pixels, state))
        self._writing = os.getpid(), thread, waiting
        return pixels

    def _try_to_write(self, image: Path, pixels: np.ndarray, state: tuple[int, int, int]) -> None:
        try:
            if not int(self._ended):
                self.write(image, pixels, state)
        except OSError as error:
            if not int(self._ended):
                self._ended.fill_(1)
                print(f"\ndecoded pixels: {error}; the other images stay JPEGs", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Wait for what this process still writes."""
        if self._writing[0] == os.getpid():
            self._writing[1].shutdown()
            self._writing = 0, None, []

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_writing": (0, None, [])}


class Room(NamedTuple):
    """What a folder of decoded pixels holds, needs, and what its disk has left, bytes."""

    missing: int  # images
    needed: int
    free: int

    @property
    def enough(self) -> bool:
        return self.needed == 0 or self.needed + RESERVE <= self.free


def open_decoded(
    folder: Path, images: Sequence[Path], sizes: Sequence[tuple[int, int] | None], check: bool = False
) -> tuple[DecodedPixels | None, str]:
    """The pixels of ``images``, of (height, width) each, and a line about them; None where they cannot be kept, and why.

    ``check``: compute all their checksums now.
    """
    others = "images are decoded anew in each epoch"
    decoded = DecodedPixels(folder)
    try:
        make_folder(folder)
        remove_stale_partials(folder)
    except OSError:
        pass
    missing = [math.prod(size) * 3 for image, size in zip(images, sizes) if size and decoded.read(image, check) is None]
    if not missing:
        return decoded, f"decoded pixels: all in {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        if len(missing) < len(images):
            decoded._ended.fill_(1)
            return decoded, f"{folder}: cannot write here; {len(missing)} {others}, unless --pixels-dir names another"
        return None, f"{folder}: cannot write here; {others}, unless --pixels-dir names another folder"
    room = Room(len(missing), sum(missing), shutil.disk_usage(folder).free)
    said = f"{room.needed / 1e9:.1f} GB for {room.missing} images in {folder}, {room.free / 1e9:.1f} GB are free"
    if not room.enough:
        larger = f"a disk with {RESERVE / 1e9:.0f} GB left beside them"
        return None, f"decoded pixels: {said}; {others}, unless --pixels-dir names {larger}"
    return decoded, f"decoded pixels: {said}; written as they are first read"


def _state(image: Path) -> tuple[int, int, int]:
    """Bytes and times of an image; the second time changes with whatever is done to the file."""
    found = image.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Job(NamedTuple):
    """An argument of a worker process."""

    image: Path
    folder: Path


def _write_one(job: _Job) -> None:
    state = _state(job.image)
    DecodedPixels(job.folder).write(job.image, load_image(job.image), state)


def parse() -> argparse.Namespace:
    parser = make_parser("Write the decoded pixels of the training images, so that the first epoch finds them.")
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, metavar="P", help="prepared data set")
    add("--pixels-dir", type=Path, metavar="P", help="folder for them (default: train/pixels of the data set)")
    add("--workers", type=number(int, 1), default=default_workers(), metavar="N", help="processes")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    images = list_images(arguments.data_dir / "train")
    folder = make_folder(arguments.pixels_dir or arguments.data_dir / "train" / "pixels")
    decoded, said = open_decoded(folder, images, [image_size(image) for image in images], check=True)
    if decoded is None:
        raise ValueError(said)
    print(said.partition("; ")[0])
    missing = [_Job(image, folder) for image in images if decoded.read(image) is None]
    return report_failures(list(for_each(_write_one, missing, arguments.workers, "decode")))


if __name__ == "__main__":
    run_script(main)
