"""The long form of the fault tests, see ``scripts/faults.sh``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import fuzz  # noqa: E402
import harness  # noqa: E402

TRAINING = ("train", "train anew", "train from a file")
STAGES = ("preprocess", "preprocess, 2 workers", "splat", "clean", "kernels", *TRAINING, "test")


def kill_all(stages: list[str], kills: int, seed: int) -> bool:
    """Print a table line by line -> whether every kill of every stage was survived."""
    print(f"{'stage':<22} {'one run':>8} {'kills':>6} {'survived':>9} {'bytes equal':>12} {'in all':>8}", flush=True)
    well = True
    with tempfile.TemporaryDirectory() as folder, harness.Server() as server:
        made = harness.make_stages(server, Path(folder) / "inputs")
        for name in stages:
            before = time.perf_counter()
            row = harness.kill_stage(server, made[name], Path(folder) / "runs", kills, seed)
            took = time.perf_counter() - before
            line = f"{name:<22} {row.seconds:>6.2f} s {row.kills:>6} {row.survived:>9} {row.equal:>12} {took:>6.0f} s"
            print(line, *(f"  {problem}" for problem in row.problems), sep="\n", flush=True)
            well &= row.survived == row.equal == row.kills
    return well


def main() -> int:
    """Kill, or fuzz, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="random moments for each stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="stages to kill")
    parser.add_argument("--fuzz", action="store_true", help="give every reader damaged files instead")
    parser.add_argument("--cases", type=int, default=2000, help="damaged files for each reader")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damage")
    arguments = parser.parse_args()
    if arguments.fuzz:
        return 0 if fuzz.fuzz_all(arguments.cases, arguments.seed) else 1
    return 0 if kill_all(arguments.stages, arguments.kills, arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
