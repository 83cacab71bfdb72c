"""The loading processes of a training: the same samples however many there are, and what is said of what stops them."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from crowd_data import CROP, make_root

from datasets.crowd import Crowd
from datasets.loading import crop_loader
from datasets.sampler import EpochSampler
from utils.device import network_errors
from utils.images import save_jpeg
from utils.training import shared_memory
from utils.training.shared_memory import check_shared_memory, shared_memory_errors


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_whoever_reads_them_and_whether_annotations_were_read_before(root, workers):
    plain, read = Crowd(root, CROP, "train"), Crowd(root, CROP, "train")
    read.read_once()
    for path in (root / "train").glob("gs_params/*.h5"):
        path.rename(root / path.name)
    loader, batches = crop_loader(read, EpochSampler(4, 1), 2, workers, 2, torch.device("cpu")), []
    for epoch in range(3):
        read.set_epoch(epoch)
        batches += [(epoch, batch) for batch in loader]
    del loader
    for path in root.glob("*.h5"):
        path.rename(root / "train" / "gs_params" / path.name)
    assert len(batches) == 6
    for epoch, batch in batches:
        plain.set_epoch(epoch)
        for i, index in enumerate(batch.indices):
            assert torch.equal(batch.images[i], plain[index].image)
            assert torch.equal(batch.points[i, : batch.sizes[i]], plain[index].points)


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
