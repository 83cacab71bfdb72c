"""Settings for all tests, and what the tests of training share."""

import pytest
import torch
from training_runs import Recorded, Tiny, make_data

from GS2D import native

# The tensors here are small: a second thread costs more than it saves, most of all beside other processes.
torch.set_num_threads(1)


@pytest.fixture(params=["native", "reference"])
def backend(request):
    """The two ways in which a CPU draws, fits and makes kernels."""
    if request.param == "native" and not native.works():
        pytest.skip("no C++ compiler here")
    return request.param


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Small data to train on; who changes them makes a copy."""
    return make_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture
def tiny(monkeypatch):
    """Training runs, and what reads their files, build the small network."""
    for module in ("train_gs", "models"):
        monkeypatch.setattr(f"{module}.build_model", Tiny)


@pytest.fixture
def steps(monkeypatch):
    return Recorded(monkeypatch)
