"""One look at a data set and the runs on it: what is done, missing, stale or failed, and the command that comes next.

    python -m utils.status --data-dir P [--runs DIR] [--json]

``datasets.audit.status`` looks; this is its command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.cli import run_script
from utils.config import make_parser, parse_arguments

_SHOWN = 5  # files named for each kind of trouble


def print_status(status: Mapping[str, Any]) -> None:
    """Print what ``datasets.audit.status.look`` found: stages, trouble, runs, the next command."""
    print(f"{status['data_dir']}")
    states = ("done", "missing", "stale", "failed")
    print(f"{'split':<7}{'stage':<12}" + "".join(f"{state:>9}" for state in states))
    for row in status["stages"]:
        print(f"{row['split']:<7}{row['stage']:<12}" + "".join(f"{row[state]:>9}" for state in states))
    for state in ("stale", "failed"):
        lines = [line for row in status["stages"] for line in row[f"{state}_files"]]
        for line in lines[:_SHOWN]:
            print(f"{state}: {line}")
        if len(lines) > _SHOWN:
            print(f"{state}: and {len(lines) - _SHOWN} more")
    for run in status["runs"]:
        best = run["best"]
        shown = (
            f"best MAE {best['mae']:.3f}, MSE {best['mse']:.3f} (epoch {best['epoch']})" if best else "no best model"
        )
        results = f"; results: {', '.join(run['results'])}" if run["results"] else ""
        print(f"run {run['folder']}: {run['state']}, {run['epochs_done']} of {run['epochs']} epochs, {shown}{results}")
    if status["other_runs"]:
        print(f"{status['other_runs']} more runs, on other data")
    print(f"next: {status['next']}")


def main() -> None:
    """Look and print."""
    from datasets.audit.status import look

    parser = make_parser("Show what of a data set and the runs on it is done, and the command that comes next.")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="P", help="prepared data set")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of training runs")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with the names of all files")
    arguments = parse_arguments(parser)
    status = look(arguments.data_dir, arguments.runs)
    if arguments.json:
        print(json.dumps(status, indent=1))
    else:
        print_status(status)


if __name__ == "__main__":
    run_script(main)
