"""Another name of ``python -m datasets.check --quick``: what of a data set is done, and what comes next."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "--quick")
    runpy.run_module("datasets.check", run_name="__main__")
