"""Settings for all tests, and what the tests of training share."""

from pathlib import Path

import pytest
import torch
from commands import ROOT, errors
from forked import Started
from training_runs import Recorded, Tiny, make_data

# The tensors here are small: a second thread costs more than it saves, most of all beside other processes.
torch.set_num_threads(1)


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


@pytest.fixture
def here(monkeypatch):
    """The commands of an experiment, run with the small network -> each and what it printed, as they end."""
    done = []

    def run(children, command, log=None, environment=None):
        command = [str(Path(command[0]).relative_to(ROOT)), *command[1:]]
        started = Started(command[0], command[1:])
        out, err = started.communicate()
        done.append((command, out))
        if started.returncode:
            raise ValueError(errors(err)[0].partition("error: ")[2])

    monkeypatch.setattr("scripts.experiments.Children.run", run)
    return done
