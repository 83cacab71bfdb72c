"""The project's scripts in processes of their own, forked from one that has imported everything: they begin within milliseconds.

Training and evaluation use the small network of ``training_runs.py``, without dropout.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from commands import ROOT, script_main

from utils.cli import run_script

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    """pytest training_runs train_gs preprocess_dataset_ucf GS2D.fit_dataset GS2D.process_gaussians GS2D.build_kernels
    datasets.report utils.evaluation.results utils.evaluation.sources plotly.offline""".split()
)


def _run(script, arguments, folder, environment):
    """The process: a group of its own, and the script to its end."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), stream)
    os.chdir(ROOT)
    os.environ.update(environment)
    _use_tiny(environment)
    sys.argv = [script, *arguments]
    # Worker processes import the file of the main module again: that of the script, as in a run of its own.
    sys.modules["__main__"].__file__, sys.modules["__main__"].__spec__ = str(ROOT / script), None
    multiprocessing.set_start_method(None, force=True)  # what this process starts in turn is no matter of ours
    run_script(script_main(script))


def _use_tiny(environment):
    """Take the small network, and break what the environment names: the third density or the third sample of a process."""
    from training_runs import Tiny

    import models
    import train_gs

    Tiny.dropout = 0  # each process would draw a mask of its own
    train_gs.build_model = models.build_model = Tiny
    rank, forward, read = environment.get("RANK", "0"), Tiny.forward, train_gs.Crowd.__getitem__

    def not_a_number(self, images, calls=[]):  # noqa: B006
        calls.append(1)
        prediction = forward(self, images)
        return prediction._replace(density=prediction.density * float("nan")) if len(calls) == 3 else prediction

    def unreadable(self, index, calls=[]):  # noqa: B006
        calls.extend([1] * (self.split == environment["UNREADABLE_SPLIT"]))
        if len(calls) == 3:
            raise ValueError(f"{self.images[index[-1] if isinstance(index, tuple) else index]}: cannot be read")
        return read(self, index)

    if environment.get("BROKEN_RANK") == rank:
        Tiny.forward = not_a_number
    if environment.get("UNREADABLE_RANK") == rank:
        train_gs.Crowd.__getitem__ = unreadable


class Started:
    """A script that was started; its methods are those of ``subprocess.Popen``."""

    def __init__(self, script, arguments, **environment):
        self.folder = tempfile.TemporaryDirectory()
        arguments = list(map(str, arguments))
        self.process = _CONTEXT.Process(target=_run, args=(script, arguments, Path(self.folder.name), environment))
        # What the process that is forked is started with, by the first of all.
        with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}):
            self.process.start()
        self.pid = self.process.pid
        atexit.register(self.stop)  # what a test that failed has left would be waited for
        with contextlib.suppress(ProcessLookupError):
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def stop(self):
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def communicate(self, timeout=120):
        """Wait for its end -> stdout, stderr."""
        self.process.join(timeout)
        assert self.poll() is not None, f"still running after {timeout} s"
        paths = (Path(self.folder.name, name) for name in ("out", "err"))
        return tuple(path.read_text(errors="replace") if path.exists() else "" for path in paths)
