"""Running the project's scripts: as a user does, or inside the test's process, where nothing is imported again."""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from utils.cli import run_script
from utils.files import _alive

ROOT = Path(__file__).resolve().parents[1]


def run(*command, code=0, **environment):
    """Run a script from the project's root in a process of its own -> (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return _checked(done.returncode, done.stdout, done.stderr, code)


def script_main(script):
    """The ``main`` of a script, given by its path from the project's root."""
    if script == "test.py":  # the standard library has a package of that name
        spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main
    name = "GS2D/fit_dataset.py" if script.startswith("2dgs") else script
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main


def call(script, *arguments, code=0):
    """The same in this process: the script's ``main`` behind ``run_script``."""
    main, argv = script_main(script), [script, *map(str, arguments)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_script(main)
        except SystemExit as stop:
            status = stop.code or 0
    return _checked(status, out.getvalue(), err.getvalue(), code)


def evaluate(weights, *options, code=0):
    """test.py on the CPU -> (stdout, stderr)."""
    return call("test.py", "--save-path", weights, "--device", "cpu", *options, code=code)


def table(path):
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def free_port():
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def kill_group(group):
    """SIGKILL to a process group; returns when none of its processes runs, since one that was killed takes a while to end.

    Raises ``ProcessLookupError`` where the group has ended.
    """
    os.killpg(group, signal.SIGKILL)
    while _runs(group):
        time.sleep(0.001)


def _runs(group):
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):  # gone meanwhile
            if os.getpgid(int(process.name)) == group and _alive(int(process.name)):
                return True
    return False


def _checked(status, out, err, expected):
    assert status == expected, f"exit code {status}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def errors(stderr):
    """The error lines, argparse's among them."""
    return [line for line in stderr.splitlines() if line.startswith("error: ") or ": error: " in line]
