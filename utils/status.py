"""Another name of ``python -m datasets.audit.stages``: what of a data set and its runs is done, and what comes next."""

import runpy

if __name__ == "__main__":
    runpy.run_module("datasets.audit.stages", run_name="__main__")
