"""Files that somebody sent: nothing in them is executed, and small ones do not ask for much memory."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from commands import call, errors
from PIL import Image
from training_runs import Tiny

from datasets.raw.annotations import read_sh, read_ucf
from datasets.raw.raw_text import read_json
from GS2D.gaussians import Gaussians2D, read_file
from GS2D.kernel import StoredKernel, csr, load_kernel, save_kernel
from models import read_checkpoint
from utils.files import read_points
from utils.images import image_size, load_image
from utils.training.run_folder import describe

ADDRESSES = 2 << 30  # bytes that a reader may ask for
TOUCHED = 600  # megabytes that it may use
HUGE = 10**10


def refusal(read, path):
    """The message with which ``read`` refuses a small file, within bounds of memory, in a process of its own."""
    assert path.stat().st_size < 1 << 20
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before = peak()
            try:
                answer = f"read {read(path)!r:.100}"
            except (OSError, ValueError) as error:
                answer = f"refused {error}"
            os.write(send, f"{peak() - before:.0f} {answer}".encode())
        except BaseException as error:
            os.write(send, f"0 raised {error!r}".encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        megabytes, outcome, message = pipe.read().split(" ", 2)
    os.waitpid(child, 0)
    assert outcome == "refused" and int(megabytes) < TOUCHED, (megabytes, outcome, message)
    assert str(path) in message and "\n" not in message
    return message


def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def png(width, height, depth=8, color=2, data=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = buffer.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def npy(shape, version=1, length=None):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    size = struct.pack("<H" if version == 1 else "<I", len(head) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + head.encode() + bytes(40)


def bomb():
    """An image whose text unpacks to megabytes."""
    packed = b"Comment\0\0" + zlib.compress(bytes(1 << 27))
    text = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    return png(8, 8, data=text)


IMAGES = [
    (png(2**31 - 1, 2**31 - 1), "pixels, more than 300,000,000"),
    (png(17_000, 17_000, 1, 0), "17000 x 17000 pixels, more than its bytes can hold"),
    (jpeg(17_000, 17_000), "17000 x 17000 pixels, more than its bytes can hold"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),  # a program
]
ARRAYS = [npy((HUGE, 2)), npy((2**40, 2**40)), npy((HUGE, 2), 2), npy((1, 2), 2, 2**32 - 1), npy("(" * 90)]
FILES = [(read, *image) for image in IMAGES for read in (load_image, image_size)]
FILES += [(load_image, bomb(), ""), (read_json, b"[" * 500_000, "nested too deeply")]
FILES += [(read_points, array, "not a readable npy file") for array in ARRAYS]


@pytest.mark.parametrize(("read", "contents", "reason"), FILES, ids=range(len(FILES)))
def test_small_files_that_claim_to_be_large(tmp_path, read, contents, reason):
    path = tmp_path / {read_json: "a.json", read_points: "a.npy"}.get(read, "a.jpg")
    path.write_bytes(contents)
    assert reason in refusal(read, path)


def h5(path, name="params", **options):
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        file.create_dataset(name, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (HUGE, 8), "dtype": "f4", "chunks": (1000, 8), "compression": "gzip"},
        {"shape": (2, 8), "dtype": "f4", "chunks": (2**26, 8), "maxshape": (None, 8), "compression": "gzip"},
    ],
    ids=["chunks", "one chunk"],
)
def test_gaussians(tmp_path, options):
    path = tmp_path / "a_gs_params.h5"
    h5(path, **options)
    assert "more than the file can hold" in refusal(read_file, path)
    Gaussians2D.from_params(np.ones((2, 8))).save(path)
    h5(path, "fitted", **options)
    assert "'fitted' claims" in refusal(read_file, path)


def test_data_of_other_files_are_not_read(tmp_path):
    """A path in a file that somebody sent: a link, storage outside, a virtual data set."""
    secret, path = tmp_path / "secret.h5", tmp_path / "a_gs_params.h5"
    h5(secret, data=np.ones((2, 8), np.float32))
    layout = h5py.VirtualLayout((2, 8), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "params", (2, 8))
    for place in (
        lambda file: file.__setitem__("params", h5py.ExternalLink(str(secret), "params")),
        lambda file: file.create_dataset("params", (2, 8), "f4", external=[(str(secret), 0, 64)]),
        lambda file: file.create_virtual_dataset("params", layout),
    ):
        with h5py.File(path, "w") as file:
            place(file)
        assert "lies in another file" in refusal(Gaussians2D.load, path)


def stored_kernel(folder):
    path = folder / "a_kernel.h5"
    save_kernel(path, StoredKernel(csr(np.array([0, 1]), np.array([0]), np.ones(1), 1), (1, 1), {}))
    assert load_kernel(path).grid == (1, 1)
    return path


def test_kernels(tmp_path):
    path = stored_kernel(tmp_path)
    h5(path, "shape", data=np.array([HUGE, HUGE]))
    assert "do not fit shape" in refusal(load_kernel, path)
    h5(path, "indices", shape=(HUGE,), dtype="i8", chunks=(1000,), compression="gzip")
    assert "'indices' claims" in refusal(load_kernel, path)


def test_mat(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"annPoints": np.ones((3, 2))})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<ii", 3, 2), struct.pack("<ii", 2**30, 2**30), 1))
    assert "in an array with dimensions" in refusal(read_ucf, path)
    packed = zlib.compress(bytes(300 << 20))
    path.write_bytes(data[:128] + struct.pack("<II", 15, len(packed)) + packed)
    assert "cut off or too large" in refusal(read_ucf, path)
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.ones((3, 2))
    scipy.io.savemat(path, {"image_info": cells})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<ii", 1, 1), struct.pack("<ii", 2**31 - 1, 2**31 - 1), 1))
    assert "not a readable .mat file" in refusal(read_sh, path)


class Foreign:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
    executed = tmp_path / "executed"
    content = Foreign(executed)
    pickle.loads(pickle.dumps(content))
    assert executed.is_dir()  # it works where nobody takes care
    executed.rmdir()
    torch.save({"model_state_dict": {"a": content}}, tmp_path / "a.tar")
    torch.save({"a": content}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(content))
    for name in ("a.tar", "b.pth", "c.pth"):
        refusal(read_checkpoint, tmp_path / name)
    np.save(tmp_path / "a.npy", np.array([content], object))
    assert "allow_pickle=False" in refusal(read_points, tmp_path / "a.npy")
    (tmp_path / "a.yml").write_text(f"lr: !!python/object/apply:os.mkdir ['{executed}']\n")
    _, err = call("train_gs.py", "--data-dir", "x", "--config", tmp_path / "a.yml", code=2)
    assert len(errors(err)) == 1 and "not valid YAML" in err and not executed.exists()


@pytest.mark.parametrize("storage", [True, False], ids=["storage", "view"])
def test_a_checkpoint_of_the_old_form_that_claims_gigabytes(tmp_path, storage):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    data, four = path.read_bytes(), b"J" + struct.pack("<i", 2 * 10**9)
    claim = (b"X\x03\x00\x00\x00cpuq\x06K\x04", b"X\x03\x00\x00\x00cpuq\x06" + four)
    claim = claim if storage else (b"K\x00K\x04\x85", b"K\x00" + four + b"\x85")
    assert claim[0] in data
    path.write_bytes(data.replace(*claim, 1))
    assert refusal(read_checkpoint, path)


def test_what_a_checkpoint_says_of_itself_builds_no_huge_network():
    state = Tiny().state_dict()
    said = describe({"model_state_dict": state, "arguments": {"model_name": "vgg_trans", "usenum": HUGE, "topk": 0.2}})
    assert said["model_name"] == "vgg" and said["topk"] == 0.2
    state["encoder.near_embeddings.weight"] = torch.zeros(7, 512)
    said = describe({"model_state_dict": state, "arguments": {"usenum": HUGE}})
    assert said["model_name"] == "vgg_trans" and said["usenum"] == 7
    assert describe({"model_state_dict": state, "arguments": 5})["usenum"] == 7
    with pytest.raises(ValueError, match="topk"):
        describe({"model_state_dict": state, "arguments": {"topk": 10**400}})
