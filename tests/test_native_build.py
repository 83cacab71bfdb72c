"""The native engine: its build (several processes at once, no compiler, a poor one)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from GS2D import native
from GS2D.native import build

ROOT = Path(__file__).parents[1]

if not build.compilers():
    pytest.skip("no C++ compiler here", allow_module_level=True)


def run_python(code, **environment):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, **pipes)


def test_several_processes_build_at_once(tmp_path):
    code = "from GS2D import native; native.load(); print('loaded')"
    processes = [run_python(code, GST_CACHE=str(tmp_path / "new"), GST_CXXFLAGS="-O0") for _ in range(4)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output.strip()) == (0, "loaded"), errors
    assert [path.suffixes for path in (tmp_path / "new").iterdir()] == [[".so"]]


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("GST_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        native.NativeUnavailable, match=r"no C\+\+ compiler found; install g\+\+ or `pip install ziglang`"
    ):
        build.build_library()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Make a shell script the only compiler: ``compiler(body)``, in which $CXX is a real one."""
    real = " ".join(build.compilers()[0])

    def make(body):
        script = tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit; fi\nCXX="{real}"\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setattr(build, "compilers", lambda: [[str(script)]])
        monkeypatch.setenv("GST_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("GST_CXXFLAGS", "-O0")

    return make


def test_compiler_that_fails(compiler, tmp_path):
    compiler("echo 'engine.cpp:1: error: no such machine' >&2; exit 1")
    message = "failed: engine.cpp:1: error: no such machine; install"
    with pytest.raises(native.NativeUnavailable, match=message) as caught:
        build.build_library()
    assert "\n" not in str(caught.value) and not list((tmp_path / "cache").iterdir())


def test_portable_flags_where_march_native_does_not_work(compiler, tmp_path):
    compiler('case "$*" in *-march=native*) exit 1 ;; *) exec $CXX "$@" ;; esac')
    path = build.build_library()
    assert [path] == list((tmp_path / "cache").iterdir())
