"""Which backend ``auto`` stands for, and the one line that says why not another."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from GS2D import backends
from GS2D.backends import choose_backend, resolve_backend

NO_ENGINE = "the CPU engine could not be built: no C++ compiler; install g++"


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, the engine and a gsplat of our choosing: ``machine(version, operations)``."""
    for cached in (backends.gsplat_problem, backends.native_problem, backends._warn_once):
        monkeypatch.setattr(backends, cached.__name__, cached.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA H200")

    def make(version="1.5.3", operations=True, engine=True):
        package, modules = types.ModuleType("gsplat"), {}
        package.__version__, package.__path__ = version, []
        modules["gsplat"] = package if version else None
        modules["gsplat.cuda"] = types.ModuleType("gsplat.cuda")
        modules["gsplat.cuda"].__path__ = []
        modules["gsplat.cuda._backend"] = types.ModuleType("gsplat.cuda._backend")
        modules["gsplat.cuda._backend"]._C = object() if operations else None
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        if not engine:
            monkeypatch.setattr(backends, "native_problem", lambda: NO_ENGINE)

    return make


def test_a_gpu_takes_many_images_and_cores_take_few(machine):
    machine()
    assert choose_backend() == ("gsplat", "NVIDIA H200 takes many images side by side")
    assert choose_backend(images=64).backend == resolve_backend("auto", images=64) == "gsplat"
    assert choose_backend(images=1) == ("native", "a core is faster than the GPU for 1 to 3 images")
    assert resolve_backend("auto", "cuda:0") == "gsplat" and resolve_backend("auto", "cpu") == "native"
    machine(engine=False)
    assert choose_backend(images=1).backend == "gsplat"


@pytest.mark.parametrize(
    ("gsplat", "reason"),
    [
        ({"version": None}, r"gsplat cannot be imported \(ModuleNotFoundError: .*\); pip install gsplat==1.5.3"),
        (
            {"version": "1.5.4"},
            "gsplat 1.5.4 draws differently from 1.5.3, which the method prescribes; pip install gsplat==1.5.3",
        ),
        (
            {"operations": False},
            "gsplat's operations are not compiled and there is no nvcc to do it; install the CUDA .* toolkit",
        ),
    ],
    ids=["missing", "other version", "no compiler"],
)
def test_a_gsplat_that_cannot_draw_is_named_and_the_engine_fits(machine, gsplat, reason):
    machine(**gsplat)
    choice = choose_backend()
    assert choice.backend == "native"
    with pytest.raises(ValueError, match=f"^backend: {reason}; use 'native' or 'reference'$"):
        resolve_backend("gsplat")
    with pytest.warns(UserWarning, match=f"^backend native: {reason}$"):
        assert resolve_backend("auto", images=100) == "native"
    with pytest.warns(
        UserWarning, match=f"^backend reference: {reason}; the tensors are on the GPU; this is many times slower"
    ):
        assert resolve_backend("auto", "cuda") == "reference"
    machine(**gsplat, engine=False)
    assert choose_backend().backend == "reference" and NO_ENGINE in choose_backend().reason


def test_a_build_that_fails_is_one_line(machine, monkeypatch):
    machine()

    def broken(name, module=backends.importlib.import_module):
        if name == "gsplat.cuda._backend":
            raise RuntimeError("Error building extension 'gsplat_cuda':\nninja: build stopped\n/tmp/x.cu(3): error")
        return module(name)

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    monkeypatch.delenv("GST_TRACEBACK", raising=False)
    assert backends.gsplat_problem() == (
        "gsplat's operations do not build or load (RuntimeError: Error building extension 'gsplat_cuda':); "
        "GST_TRACEBACK=1 shows all of it"
    )
    monkeypatch.setenv("GST_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="build stopped"):
        backends.gsplat_problem()
