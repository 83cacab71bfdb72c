"""Decoded pixels on disk: the same samples, bound to their images, whole or not used, and what is said where there is no room."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from commands import ROOT, call, kill_group
from crowd_data import CROP, make_root
from training_runs import Tiny, make_data, train

import datasets.decoded
import train_gs
from datasets.crowd import Crowd
from datasets.decoded import DecodedPixels, open_decoded
from datasets.loading import crop_loader, keep_pixels
from datasets.sampler import EpochSampler
from utils.device import network_errors
from utils.images import PiecewiseImage, image_size, load_image, save_jpeg
from utils.training import shared_memory
from utils.training.shared_memory import check_shared_memory, shared_memory_errors


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


def stored(crowd):
    return [crowd.pixels.read(image) for image in crowd.images]


def hashes(folder, pattern="*"):
    """SHA-256 of each file: where one differs, its name is all that is to be read."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(pattern)}


def same(one, other):
    tensors = [(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor) and not a.is_sparse_csr]
    return len(tensors) >= 5 and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_from_images_and_from_decoded_pixels(root, workers):
    plain, kept = Crowd(root, CROP, "train"), Crowd(root, CROP, "train")
    sizes = kept.read_once()
    assert sizes == [(70, 90)] * 4
    assert "0.0 GB for 4 images" in keep_pixels(kept, sizes, None)
    loader = crop_loader(kept, EpochSampler(4, 1), 2, workers, 2, pin_memory=False)
    for epoch in range(3):
        plain.set_epoch(epoch), kept.set_epoch(epoch)
        for batch in loader:
            for i, index in enumerate(batch.indices):
                assert torch.equal(batch.images[i], plain[index].image) and batch.sizes[i] == len(plain[index].points)
        if not workers:
            kept.pixels.finish()
            assert same(kept[3], plain[3])
    del loader
    for image, pixels in zip(kept.images, stored(kept)):
        if not workers:  # a process that ends may leave one to the next epoch
            np.testing.assert_array_equal(pixels, load_image(image))
            np.testing.assert_array_equal(np.load(kept.pixels.path(image)), pixels)
            assert not pixels.flags.writeable


def build(root, *options):
    return call("datasets/decoded.py", "--data-dir", root, "--workers", 1, *options)


def test_stored_at_once_and_then_nothing_to_do(root):
    out, _ = build(root)
    folder = root / "train" / "pixels"
    assert "for 4 images in" in out and len(list(folder.iterdir())) == 4
    before = hashes(folder), [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    out, _ = build(root)
    assert "all in" in out
    assert before == (hashes(folder), [path.stat().st_mtime_ns for path in sorted(folder.iterdir())])


def test_pixels_of_another_image_or_cut_off_are_not_used_and_written_again(root):
    build(root)
    crowd = Crowd(root, CROP, "train")
    decoded = crowd.pixels = DecodedPixels(root / "train" / "pixels")
    first, second, third, fourth = crowd.images
    save_jpeg(255 - load_image(first), first, 90)  # replaced
    decoded.path(second).write_bytes(decoded.path(second).read_bytes()[:-300])
    decoded.path(third).write_bytes(b"")
    os.utime(fourth)  # another time, the same image
    assert [pixels is None for pixels in stored(crowd)] == [True, True, True, False]
    for image in crowd.images:
        np.testing.assert_array_equal(decoded.load(image), load_image(image))
        decoded.finish()
    for image, pixels in zip(crowd.images, stored(crowd)):
        np.testing.assert_array_equal(pixels, load_image(image))


def test_changed_bytes_are_noticed_said_once_and_written_again(root, capfd):
    build(root)
    plain, crowd = Crowd(root, CROP, "train"), Crowd(root, CROP, "train")
    folder = root / "train" / "pixels"
    changed = folder / "IMG_0002.npy"
    whole = hashes(folder)

    def change():
        contents = bytearray(changed.read_bytes())
        contents[5000] ^= 1
        changed.write_bytes(contents)

    change()
    assert "all in" in keep_pixels(crowd, crowd.read_once(), None)  # checked as they are first read
    crowd.pixels._ended.fill_(1)  # as in a folder that cannot be written
    for _ in range(2):
        assert all(same(crowd[index], plain[index]) for index in range(4))
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line == f"{changed}: changed since it was written; IMG_0002.jpg is decoded again"
    crowd.pixels._ended.fill_(0)
    crowd[1]
    crowd.pixels.finish()
    assert hashes(folder) == whole
    change()  # while a training runs, after the file was checked
    os.utime(changed, ns=(1, 1))
    assert crowd.pixels.read(crowd.images[1]) is None

    out, err = build(root)
    assert "for 1 images in" in out and "IMG_0002.npy: changed since" in err
    assert hashes(folder) == whole


def test_a_kill_while_pixels_are_written_leaves_nothing_half_written(root, tmp_path):
    build(root, "--pixels-dir", tmp_path / "whole")
    whole = hashes(tmp_path / "whole")
    slow = "import time, os; real = os.fsync; os.fsync = lambda file: (time.sleep(0.2), real(file))"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {slow}; from datasets import decoded; decoded.main()"
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", script, "--data-dir", root, "--pixels-dir", killed, "--workers", "1"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(killed.glob("[!.]*.npy")):
            time.sleep(0.01)
        time.sleep(0.1)  # into the next one
        process.send_signal(signal.SIGKILL)
    done = list(killed.glob("[!.]*.npy"))
    assert 1 <= len(done) < 4 and list(killed.glob(".*partial*"))
    build(root, "--pixels-dir", killed)
    assert hashes(killed) == whole


def test_a_kill_of_a_training_that_writes_pixels_and_the_same_command_again(tmp_path, monkeypatch):
    root, run = make_data(tmp_path / "data"), tmp_path / "run"
    folder, epochs = root / "train" / "pixels", 20
    build(root, "--pixels-dir", tmp_path / "whole")
    whole = hashes(tmp_path / "whole")
    slow = "import time, os; real = os.fsync; os.fsync = lambda file: (time.sleep(0.3), real(file))"
    script = f"import sys; sys.path.insert(0, 'tests'); {slow}; import train_tiny; train_tiny.train_gs.main()"
    options = ["--data-dir", root, "--device", "cpu", "--backbone-weights", "none", "--crop-size", 64]
    command = [sys.executable, "-c", script, *options, "--save-dir", run, "--epochs", epochs, "--num-workers", 1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True, **quiet) as process:
        while process.poll() is None and not (list(folder.glob("[!.]*.npy")) and list(folder.glob(".*partial*"))):
            time.sleep(0.01)
        kill_group(process.pid)
    done = hashes(folder, "[!.]*.npy")
    assert 1 <= len(done) < 4 and done.items() <= whole.items()
    assert list(folder.glob(".*partial*"))

    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(Tiny, "dropout", 0)  # as train_tiny.py has it
    train(root, run, "--epochs", epochs)
    deadline = time.monotonic() + 20
    while {path.name for path in folder.iterdir()} != set(whole) and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread writes the last ones
    assert hashes(folder) == whole


Disk = namedtuple("Disk", "total used free")


def test_a_disk_without_room_is_said_in_one_line(root, monkeypatch, capsys):
    crowd = Crowd(root, CROP, "train")
    sizes = crowd.read_once()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, 10_000))
    decoded, said = open_decoded(root / "pixels", crowd.images, sizes)
    assert decoded is None and "0.0 GB are free; images are decoded anew in each epoch" in said and "\n" not in said
    crowd.pixels = DecodedPixels(root / "pixels")  # the disk fills later
    for index in range(4):
        assert same(crowd[index], Crowd(root, CROP, "train")[index])
    crowd.pixels.finish()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("decoded pixels: ") and "less than 1 GB are left" in line
    assert not list((root / "pixels").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said_by_access(root):
    (root / "pixels").mkdir(mode=0o500)
    assert "cannot write here" in open_decoded(root / "pixels", *sized(root))[1]


def sized(root):
    images = Crowd(root, CROP, "train").images
    return images, [image_size(image) for image in images]


def test_a_folder_that_cannot_be_made(root, monkeypatch):
    (root / "file").write_bytes(b"")
    decoded, said = open_decoded(root / "file" / "pixels", *sized(root))
    assert (
        decoded is None and said.startswith(f"{root / 'file' / 'pixels'}: cannot write here") and "--pixels-dir" in said
    )
    build(root)
    (root / "train" / "pixels" / "IMG_0003.npy").unlink()
    monkeypatch.setattr(datasets.decoded.os, "access", lambda *_: False)
    decoded, said = open_decoded(root / "train" / "pixels", *sized(root))
    assert "1 images are decoded anew" in said and decoded.read(sized(root)[0][0]) is not None
    decoded.load(sized(root)[0][2])
    decoded.finish()
    assert not decoded.path(sized(root)[0][2]).exists()


def test_the_crop_that_works_for_the_smallest_image_is_named(root):
    save_jpeg(np.zeros((52, 61, 3), np.uint8), root / "train" / "IMG_0003.jpg", 90)
    with pytest.raises(ValueError, match="IMG_0003.jpg: 61 x 52 pixels, .* lower --crop-size to 48 or less, or pre"):
        Crowd(root, 128, "train").read_once()
    Crowd(root, 128, "train", skip_bad=True).read_once()
    Crowd(root, 48, "train").read_once()


def test_shared_memory_that_is_too_small_is_said_before_the_first_epoch(monkeypatch):
    vfs = namedtuple("vfs", "f_bavail f_frsize")
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda _: vfs(1000, 1000))
    check_shared_memory(200_000, 2, 2, 4)  # 4 under way, 1 in use
    check_shared_memory(10**9, 0, 2, 4)
    with pytest.raises(ValueError) as caught:
        check_shared_memory(200_001, 2, 2, 4)
    assert str(caught.value) == (
        "not enough shared memory in /dev/shm for --num-workers 2 and --batch-size 4, 1.0 MB of which 1.0 MB are free; "
        "enlarge it (docker run --shm-size), or lower --num-workers (0 needs none) or --prefetch"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"),
            "not enough shared memory",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "not enough shared memory"),
        (OSError(28, "No space left on device"), "not enough shared memory in /dev/shm for --num-workers 2 and"),
        (
            RuntimeError("DataLoader timed out after 300 seconds"),
            "no batch came for --loading-timeout 300 seconds: .*--num-workers 0",
        ),
    ],
)
def test_what_a_lack_of_shared_memory_looks_like(error, message):
    with pytest.raises(ValueError, match=message), shared_memory_errors(2, 4, 300):
        raise error
    with pytest.raises(RuntimeError, match="other"), shared_memory_errors(2, 4, 300):
        raise RuntimeError("other")


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_process_killed_while_it_hands_a_batch_over(error):
    with pytest.raises(ValueError, match="killed .out of memory.*; lower it"), network_errors("lower it"):
        with shared_memory_errors(2, 4, 300):
            raise error
    with pytest.raises(type(error)), shared_memory_errors(0, 4, 300):
        raise error


def test_where_pixels_cannot_be_stored_only_pieces_are_decoded(root, monkeypatch):
    crowd = Crowd(root, CROP, "train")
    keep_pixels(crowd, crowd.read_once(), None)
    crowd.pixels._ended.fill_(1)  # the disk is full
    assert isinstance(crowd.pixels.load(crowd.images[0]), PiecewiseImage)
    assert same(crowd[0], Crowd(root, CROP, "train")[0])
    crowd.pixels._ended.fill_(0)
    monkeypatch.setattr(datasets.decoded, "_WAITING", 0)  # the writers are busy
    assert isinstance(crowd.pixels.load(crowd.images[0]), PiecewiseImage)
    monkeypatch.undo()
    assert isinstance(crowd.pixels.load(crowd.images[0]), np.ndarray)
    crowd.pixels.finish()
    assert crowd.pixels.read(crowd.images[0]) is not None


def test_an_image_that_is_removed_ends_nothing(root):
    crowd = Crowd(root, CROP, "train")
    keep_pixels(crowd, crowd.read_once(), None)
    first, pixels = crowd.images[0], load_image(crowd.images[0])
    state = datasets.decoded._state(first)
    first.unlink()
    crowd.pixels._try_to_write(first, pixels, state)
    assert not int(crowd.pixels._ended) and not crowd.pixels.path(first).exists()
