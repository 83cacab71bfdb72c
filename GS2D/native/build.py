"""Compiles the engine on first use, with whatever C++ compiler the machine has.

The library lies in ``$GST_CACHE``, ``$XDG_CACHE_HOME/gst`` or ``~/.cache/gst``, under a name that is a hash of the
sources, the flags, the compiler and the processor. ``$CXX`` chooses the compiler; ``$GST_CXXFLAGS`` is appended to the
flags.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("engine.cpp", "scene.hpp", "kernel.hpp", "resize.hpp")]
# No -ffast-math: NaN has to compare as NaN. Contraction to fused multiply-adds is most of what it would bring.
FLAGS = "-O3 -std=c++17 -shared -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast"


class NativeUnavailable(RuntimeError):
    """The engine cannot be built or loaded here; the message says why and what to do about it."""


def build_library() -> Path:
    """The compiled library, built now if it is not in the cache. Raises ``NativeUnavailable``."""
    reason = "no C++ compiler found"
    for compiler in compilers():
        version = _run([*compiler, "--version"]).stdout
        for flags in (f"{FLAGS} -march=native", FLAGS):
            command = [*compiler, *flags.split(), *shlex.split(os.environ.get("GST_CXXFLAGS", ""))]
            path = _cache_directory() / f"native-{_key(command, version)}.so"
            if not path.is_file():
                reason = _compile(command, path)
            if path.is_file():
                return path
    raise unavailable(reason)


def unavailable(reason: str) -> NativeUnavailable:
    """The exception for ``reason``, with the remedy."""
    return NativeUnavailable(f"native engine: {reason}; install g++ or `pip install ziglang`")


def compilers() -> list[list[str]]:
    """Commands of the C++ compilers found here, in the order in which they are tried."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    found = [command for command in candidates if command and shutil.which(command[0])]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "c++"])
    return found


def _compile(command: list[str], path: Path) -> str:
    """Put the library at ``path``, whole or not at all; what went wrong otherwise."""
    handle, partial = tempfile.mkstemp(prefix=path.stem, suffix=".partial.so", dir=path.parent)
    os.close(handle)
    try:
        compiled = _run([*command, str(SOURCES[0]), "-o", partial])
        if compiled.returncode:
            return f"{command[0]} failed: {_first_line(compiled)}"
        os.chmod(partial, 0o755)
        os.replace(partial, path)
        return ""
    except OSError as error:
        return str(error)
    finally:
        Path(partial).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _first_line(process: subprocess.CompletedProcess) -> str:
    lines = [line for line in process.stderr.splitlines() if "error" in line.lower()] or process.stderr.splitlines()
    return lines[0].strip()[:300] if lines else "no message"


def _key(command: list[str], version: str) -> str:
    """Of sources, compiler, flags and processor, so that a cache on a shared disk serves each machine its own library."""
    processor = platform.processor()
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        processor = "\n".join(line for line in first.splitlines() if line.startswith(names))
    parts = [*(source.read_text() for source in SOURCES), *command, version, platform.machine(), processor]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cache_directory() -> Path:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home directory
        chosen, shared = os.environ.get("GST_CACHE"), os.environ.get("XDG_CACHE_HOME")
        directory = Path(chosen or Path(shared or Path.home() / ".cache") / "gst")
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    directory = Path(tempfile.gettempdir()) / f"gst-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():  # others must not slip code in
        raise unavailable(f"{directory} belongs to another user, set GST_CACHE to a folder of your own")
    return directory
