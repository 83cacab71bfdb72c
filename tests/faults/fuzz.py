"""Damaged files for every reader: each must give a result or refuse with one line that names the file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from PIL import Image
from raw_data import image_info
from training_runs import Tiny

from datasets import check
from datasets.raw.annotations import read_jhu, read_nwpu, read_sh, read_ucf
from datasets.raw.exports import read_coco, read_labelme, read_points_json, read_via
from datasets.raw.lines import read_yolo
from datasets.raw.marks import Request
from datasets.raw.tables import read_csv
from GS2D.gaussians import Gaussians2D, read_file
from GS2D.kernel import StoredKernel, csr, load_kernel, read_attributes, restrict, save_kernel
from models import read_checkpoint
from utils.config import make_parser, number, parse_arguments
from utils.files import read_points
from utils.images import load_image
from utils.training.run_folder import RunFolder, describe

_OF_IMAGE = Request(named=False)
MEMORY = 3 << 30  # bytes that a reader may ask for, with a file of a few kilobytes
_WORDS = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00" * 8, b"\xff" * 8]
_EXTREMES = [*_WORDS, *(bytes([byte]) for byte in b'\n"[{-')]


class Reader(NamedTuple):
    """How a valid file is written, and what reads it."""

    name: str
    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _image(kind: str) -> Callable[[Path], None]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return lambda path: Image.fromarray(pixels).save(path, kind)


def _kernel(path: Path) -> None:
    kernel = csr(np.array([0, 1, 2, 4]), np.array([0, 1, 0, 1]), np.full(4, 0.5), 2)
    save_kernel(path, StoredKernel(kernel, (1, 2), {"stride": 8}))


def _read_kernel(path: Path) -> None:
    stored = load_kernel(path)
    read_attributes(path)
    annotations = stored.kernel.shape[0] - 1
    if annotations <= 10**6:
        restrict(stored, np.arange(annotations) % 2 == 0, 0, 0, (1, 2), True)


def _checkpoint(path: Path) -> None:
    model = Tiny()
    optimizer = torch.optim.Adam(model.parameters())
    state = {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**state, "arguments": {"model_name": "vgg", "topk": 0.3}}, path)


def _describe(path: Path) -> None:
    describe(read_checkpoint(path))


def _mat(do_compression: bool = False, **variables: Any) -> Callable[[Path], None]:
    return lambda path: scipy.io.savemat(path, variables, do_compression=do_compression)


def _text(contents: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(contents if isinstance(contents, str) else json.dumps(contents))


def _read_config(path: Path) -> None:
    parser = make_parser("fuzz")
    parser.add_argument("--lr", type=number(float, 0), default=1.0)
    parser.add_argument("--names", nargs="+", default=[])
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            parse_arguments(parser, ["--config", str(path)])
    except SystemExit:
        line = stderr.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        about_a_value = line.startswith("argument --")  # which names the option in place of the file
        raise ValueError(f"{path}: {line}" if about_a_value else line.removeprefix("--config ")) from None


def _read_status(path: Path) -> None:
    check.main(["--json", "--data-dir", str(path.parent), "--runs", str(path.parent)])


def _options(path: Path) -> None:
    path.with_name("0_ckpt.tar").touch()
    path.write_text("lr: 1.0\nepochs: 3\ndata_dir: d\n")


def _read_options(path: Path) -> None:
    RunFolder(path.parent).find_start("auto", False, {"lr": 1.0}, 1)
    _read_status(path)


_BOX = {"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1}
_COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [_BOX], "categories": [{"id": 1, "name": "p"}]}
_LABELME = {"shapes": [{"shape_type": "point", "points": [[1, 2]], "label": "p"}], "imageWidth": 9, "imageHeight": 9}
_SHAPES = [{"shape_attributes": {"name": "point", "cx": 1, "cy": 2}}]
_RECORD = {"image": "train/a.jpg", "source": "/raw/a.jpg", "points": 1, "dropped": 0, "height": 9, "width": 9}
_RECORD |= {"grey": False, "orientation": 1, "made_from": {"raw_files": [[1, 2]]}}
_METRICS = '{"epoch": 0, "val_mae": 1.0, "val_mse": 2.0}\n{"epoch": 1, "val_mae": 0.5, "val_mse": 1.0}\n'

READERS = [
    Reader("JPEG", "a.jpg", _image("JPEG"), load_image),
    Reader("PNG", "a.png", _image("PNG"), load_image),
    Reader("npy", "a.npy", lambda path: np.save(path, np.ones((5, 3), np.float32)), read_points),
    Reader("gs_params", "a_gs_params.h5", lambda path: Gaussians2D.from_params(np.ones((9, 8))).save(path), read_file),
    Reader("kernel", "a_kernel.h5", _kernel, _read_kernel),
    Reader("checkpoint", "1_ckpt.tar", _checkpoint, _describe),
    Reader("weights", "a.pth", lambda path: torch.save(Tiny().state_dict(), path), _describe),
    Reader("mat, QNRF", "a.mat", _mat(annPoints=np.ones((5, 2))), read_ucf),
    Reader("mat, packed", "a.mat", _mat(annPoints=np.ones((5, 2)), do_compression=True), read_ucf),
    Reader("mat, ShanghaiTech", "a.mat", _mat(image_info=image_info(np.ones((5, 2)))), read_sh),
    Reader("JHU", "a.txt", _text("1 2 3 4 0 1\n5.5 6 7 8 0 1\n"), read_jhu),
    Reader("NWPU", "a.json", _text({"points": [[1, 2], [3.5, 4]]}), read_nwpu),
    Reader("csv", "a.csv", _text("image,x,y\na.jpg,1,2.5\nb.jpg,,\n"), read_csv),
    Reader("json", "a.json", _text({"a.jpg": [[1, 2]], "b.jpg": []}), read_points_json),
    Reader("coco", "a.json", _text(_COCO), read_coco),
    Reader("yolo", "a.txt", _text("0 0.5 0.5 0.1 0.2\n1 0.1 0.2 0.1 0.1\n"), lambda path: read_yolo(path, _OF_IMAGE)),
    Reader("labelme", "a.json", _text(_LABELME), lambda path: read_labelme(path, _OF_IMAGE)),
    Reader("via", "a.json", _text({"a": {"filename": "a.jpg", "regions": _SHAPES}}), read_via),
    Reader("configuration", "a.yml", _text("# a comment\nlr: 5.0e-6\nnames: [a, b]\n"), _read_config),
    Reader("run's options", "config.yml", _options, _read_options),
    Reader("run's metrics", "metrics.jsonl", _text(_METRICS), _read_status),
    Reader("preparation's record", "preprocess.jsonl", _text(json.dumps(_RECORD) + "\n"), _read_status),
]


def damage(contents: bytes, random: np.random.Generator) -> bytes:
    """One to four of: a byte or a word exchanged, a piece removed, repeated or put elsewhere, the end cut off."""
    data = bytearray(contents)
    for _ in range(random.integers(1, 5)):
        at, length = int(random.integers(0, len(data) + 1)), int(random.integers(1, 17))
        kind = random.integers(0, 6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(random.integers(0, 8))
        elif kind == 1:
            value = _EXTREMES[random.integers(0, len(_EXTREMES))]
            data[at : at + len(value)] = value
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * int(random.integers(1, 4))
        elif kind == 4:
            source = int(random.integers(0, len(data) + 1))
            data[at : at + length] = data[source : source + length]
        elif random.random() < 0.3:
            del data[at:]
    return bytes(data)


def _try(reader: Reader, path: Path) -> str | None:
    """None for a result, "" for a proper refusal, or what is wrong."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            reader.read(path)
    except (OSError, ValueError) as error:
        message = str(error)
        named = str(path.parent) in message or isinstance(error, OSError) or message.startswith("the checkpoint ")
        return "" if named and "\n" not in message else f"{type(error).__name__} without the file: {message[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return None


def _child(reader: Reader, folder: Path, first: int, cases: int, seed: int, pipe: int) -> None:
    """Read the damaged files ``first`` to ``cases``, and write a byte for each: r, x, or a line with a problem."""
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    path = folder / reader.file
    valid = path.with_suffix(".valid").read_bytes()
    for case in range(first, cases):
        path.write_bytes(damage(valid, np.random.default_rng([seed, case])))
        problem = _try(reader, path)
        line = "read" if problem is None else "refused" if not problem else f"case {case}: {problem}"
        os.write(pipe, (line.replace("\n", " ") + "\n").encode())


def fuzz_reader(reader: Reader, folder: Path, cases: int, seed: int) -> list[str]:
    """Give a reader ``cases`` damaged files, in a process of its own that may crash -> read, refused or a problem, of each."""
    lines: list[str] = []
    folder.mkdir(parents=True)
    path = folder / reader.file
    reader.write(path)
    shutil.copy(path, path.with_suffix(".valid"))
    assert _try(reader, path) is None, f"{reader.name}: cannot read what is whole"
    while len(lines) < cases:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _child(reader, folder, len(lines), cases, seed, send)
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as pipe:
            lines += pipe.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if len(lines) < cases:
            lines.append(f"case {len(lines)}: the process ended with {code}")
    return lines
