"""Which backend ``auto`` stands for, and the one line that says why not another."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from GS2D import backends, native
from GS2D.backends import choose_backend, resolve_backend

NO_ENGINE = "the CPU engine could not be built: no C++ compiler; install g++"


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, the engine and a gsplat of our choosing: ``machine(version, operations)``."""
    monkeypatch.setattr(backends, "gsplat_problem", backends.gsplat_problem.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA H200")

    def make(version="1.5.3", operations=True, engine=True):
        modules = {name: types.ModuleType(name) for name in ("gsplat", "gsplat.cuda", "gsplat.cuda._backend")}
        for name, module in modules.items():
            module.__version__, module.__path__, module._C = version, [], object() if operations else None
            monkeypatch.setitem(sys.modules, name, module if version else None)
        monkeypatch.setattr(native, "problem", lambda: None if engine else NO_ENGINE)

    return make


def test_a_gpu_draws_what_is_not_on_a_cpu(machine):
    machine()
    assert choose_backend() == ("gsplat", "NVIDIA H200 takes many images side by side")
    assert resolve_backend("auto", "cuda:0") == "gsplat" and resolve_backend("auto", "cpu") == "native"
    assert choose_backend(device="cpu") == ("native", "gsplat does not run on a CPU")
    with pytest.raises(ValueError, match="^backend: gsplat does not run on a CPU; use 'native' or 'reference'$"):
        choose_backend("gsplat", "cpu")


@pytest.mark.parametrize(
    ("gsplat", "reason"),
    [
        ({"version": None}, r"gsplat cannot be imported .*ModuleNotFoundError: .*; pip install gsplat==1.5.3, and"),
        ({"version": "1.5.4"}, "gsplat 1.5.4 draws differently from 1.5.3, .*; pip install gsplat==1.5.3"),
        ({"operations": False}, "gsplat's operations are not compiled .*; install the CUDA .* toolkit"),
    ],
    ids=["missing", "other version", "no compiler"],
)
def test_a_gsplat_that_cannot_draw_is_named_and_the_engine_fits(machine, gsplat, reason):
    machine(**gsplat)
    with pytest.raises(ValueError, match=f"^backend: {reason}.*; use 'native' or 'reference'$"):
        resolve_backend("gsplat")
    with pytest.warns(UserWarning, match=f"^backend native: {reason}"):
        assert resolve_backend("auto") == "native"
    with pytest.warns(UserWarning, match=f"^backend reference: {reason}.*; the tensors are on the GPU; this is many"):
        assert resolve_backend("auto", "cuda") == "reference"
    machine(**gsplat, engine=False)
    assert choose_backend()[0] == "reference" and NO_ENGINE in choose_backend()[1]


def test_a_build_that_fails_is_one_line(machine, monkeypatch):
    machine()

    def broken(name, module=backends.importlib.import_module):
        if name == "gsplat.cuda._backend":
            raise RuntimeError("Error building extension 'gsplat_cuda':\nninja: build stopped\n/tmp/x.cu(3): error")
        return module(name)

    monkeypatch.setattr(backends.importlib, "import_module", broken)

    reason = backends.gsplat_problem()
    assert "(RuntimeError: Error building extension 'gsplat_cuda':); pip" in reason and "\n" not in reason
