"""The loading processes of a training: the same samples however many there are, and what is said of what stops them."""

import pytest
import torch
from crowd_data import CROP, assert_equal, make_root

from datasets.crowd import Crowd, collate
from datasets.loading import CropLoader, EpochSampler
from utils.device import network_errors
from utils.training.shared_memory import shared_memory_errors


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_whoever_reads_them_and_annotations_are_read_once(root, workers):
    plain, read = Crowd(root, CROP, "train"), Crowd(root, CROP, "train")
    read.read_once()
    gaussians = root / "train" / "gs_params"
    gaussians.rename(root / "elsewhere")
    sampler, batches = EpochSampler(4, 1), []
    loader = CropLoader(read, sampler, 3, workers, 2, torch.device("cpu"))
    next(iter(loader))  # of an epoch that is not finished
    for epoch in (0, 1, 2, 5):
        sampler.epoch = epoch
        batches += [(epoch, batch) for batch in loader]
    del loader
    (root / "elsewhere").rename(gaussians)
    assert [len(batch.images) for _, batch in batches] == [3, 1] * 4
    for epoch, batch in batches:
        plain.set_epoch(epoch)
        assert_equal(batch, collate([plain[index] for index in batch.indices]))
    for epoch in (0, 1, 2, 5):
        assert sorted(index for at, batch in batches if at == epoch for index in batch.indices) == [0, 1, 2, 3]


SHARED = "not enough shared memory in /dev/shm for --num-workers 2 and"
KILLED = "killed .out of memory.*; lower it"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"), SHARED),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), SHARED),
        (OSError(28, "No space left on device"), SHARED),
        (RuntimeError("DataLoader timed out after 300 seconds"), "no batch .* 300 seconds: .*--num-workers 0"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), KILLED),
        (EOFError(), KILLED),  # a process was killed while it handed a batch over
        (ConnectionResetError(104, "Connection reset by peer"), KILLED),
        (RuntimeError("other"), None),
    ],
)
def test_what_stops_the_loading_processes_is_named(error, message):
    with pytest.raises(ValueError if message else RuntimeError, match=message or "other"):
        with network_errors("lower it"), shared_memory_errors(2, 4, 300):
            raise error
