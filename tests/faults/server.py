"""Starts the project's scripts by forking a process that has imported everything: a run begins its work within milliseconds.

Reads on stdin a JSON line for runs that are to begin together, a list of {"script": ..., "arguments": [...], "log": ...};
answers with a line of the processes' ids, each of which leads a group of its own, and one of their exit codes when all have
ended. Training and evaluation use the network of ``train_tiny.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import train_tiny  # noqa: E402

import datasets.report  # noqa: E402, F401
import GS2D.build_kernels  # noqa: E402, F401
import GS2D.fit_dataset  # noqa: E402, F401
import GS2D.process_gaussians  # noqa: E402, F401
import models  # noqa: E402
import preprocess_dataset_ucf  # noqa: E402, F401
from utils.cli import run_script  # noqa: E402

_spec = importlib.util.spec_from_file_location("evaluate_script", TESTS.parent / "test.py")
evaluate_script = importlib.util.module_from_spec(_spec)
sys.modules["evaluate_script"] = evaluate_script
_spec.loader.exec_module(evaluate_script)
models.build_model = train_tiny.Tiny


def script_main(script: str):
    if script == "test.py":
        return evaluate_script.main
    name = "GS2D/fit_dataset.py" if script.startswith("2dgs") else script
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main


def run(request: dict) -> int:
    """Run a script in this process, its output in the log -> exit code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.argv = [request["script"], *request["arguments"]]
    # Worker processes import the file of the main module again: that of the script, as in a run of its own.
    sys.modules["__main__"].__file__ = str(TESTS.parent / request["script"])
    try:
        run_script(script_main(request["script"]))
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def start(request: dict) -> int:
    """Run a script in a process and a process group of its own -> its id."""
    process = os.fork()
    if process == 0:
        code = 70  # whatever ends without an exit code of its own
        try:
            os.setpgid(0, 0)
            code = run(request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.setpgid(process, process)
    return process


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        processes = [start(request) for request in json.loads(line)]
        print(*processes, flush=True)
        print(*(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes), flush=True)


if __name__ == "__main__":
    main()
