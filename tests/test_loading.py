"""The loading processes of a training: the same samples however many there are, and what is said of what stops them."""

import gc
import multiprocessing
import os

import pytest
import torch
from crowd_data import CROP, assert_equal, make_root
from training_runs import make_data, train

from datasets.crowd import Crowd, collate
from datasets.loading import CropLoader, EpochSampler
from utils.device import network_errors


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


def test_a_training_that_ends_has_ended_its_loading_processes(tmp_path):
    """Not when its memory happens to be collected, or at the interpreter's exit, where PyTorch takes them for killed ones."""
    gc.collect()
    gc.disable()
    try:
        train(make_data(tmp_path / "data"), tmp_path / "run", "--epochs", 2, "--num-workers", 2)
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


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


class Garbage:
    """What only the garbage collector frees, and only one process may."""

    def __init__(self, log):
        self.itself, self.log, self.owner = self, log, os.getpid()

    def __del__(self):
        if os.getpid() != self.owner:
            self.log.write_text("freed by another process")


def test_loading_processes_do_not_free_what_the_training_has_dropped(root, tmp_path, monkeypatch):
    """A CUDA graph of a run before, freed in a process without a GPU, ends that process."""
    read, training = Crowd.__getitem__, os.getpid()

    def collecting(crowd, index):
        if os.getpid() != training:
            gc.collect(0)
        return read(crowd, index)

    monkeypatch.setattr(Crowd, "__getitem__", collecting)
    gc.disable()
    try:
        Garbage(tmp_path / "log")
        loader = CropLoader(Crowd(root, CROP, "train"), EpochSampler(4, 1), 2, 1, 2, torch.device("cpu"))
        assert len(list(loader)) == 2
        del loader
    finally:
        gc.enable()
    assert not (tmp_path / "log").exists()


SHARED = "in /dev/shm, which is full; enlarge it"
KILLED = "killed .out of memory.*; lower it"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"), SHARED),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), SHARED),
        (OSError(28, "No space left on device"), SHARED),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), KILLED),
        (EOFError(), KILLED),  # a process was killed while it handed a batch over
        (ConnectionResetError(104, "Connection reset by peer"), KILLED),
        (RuntimeError("other"), None),
        (OSError("other"), None),
    ],
)
def test_what_stops_the_loading_processes_is_named(error, message):
    with pytest.raises(ValueError if message else type(error), match=message or "other"):
        with network_errors("lower it"):
            raise error
