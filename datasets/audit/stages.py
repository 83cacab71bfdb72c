"""Another name of ``python -m datasets.check --quick``."""

import sys

from datasets.check import main as check
from utils.cli import run_script


def main() -> int:
    """Look without decoding."""
    return check(["--quick", *sys.argv[1:]])


if __name__ == "__main__":
    run_script(main)
