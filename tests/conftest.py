"""Settings for all tests, and what the tests of training share."""

import shutil

import pytest
import torch
from forked import Started
from golden_weights import fill
from training_runs import Recorded, Tiny, make_data

from GS2D import native
from models import build_model
from utils.training.run_folder import save_weights

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
def weights(tmp_path, tiny):
    """The best model of the small network, which test.py loads."""
    torch.manual_seed(0)
    state = {name: 3 * tensor for name, tensor in Tiny().state_dict().items()}
    save_weights(tmp_path / "best_model.pth", state, {"model_name": "vgg", "topk": 0.3, "usenum": 18})
    return tmp_path / "best_model.pth"


@pytest.fixture(scope="session")
def golden_runs(tmp_path_factory):
    """Folders of runs of both networks with the golden weights; the one of vgg_trans says nothing of itself, as the authors'."""
    root = tmp_path_factory.mktemp("golden")
    for name in ("vgg", "vgg_trans"):
        path = root / "runs" / f"qnrf_{name}" / "best_model.pth"
        path.parent.mkdir(parents=True)
        state = fill(build_model(name)).state_dict()
        if name == "vgg":
            save_weights(path, state, {"model_name": name, "topk": 0.3, "usenum": 18})
        else:
            torch.save(state, path)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def steps(monkeypatch):
    return Recorded(monkeypatch)


@pytest.fixture
def here(monkeypatch):
    """The commands of an experiment, run with the small network -> each and what it printed, as they end."""
    done = []

    def start(command, log, environment):
        started = Started(command[0], command[1:])
        out, err = started.communicate()
        done.append((command, out))
        log.write_text(out + err)
        return started

    monkeypatch.setattr("scripts.compare_losses.start", start)
    return done
