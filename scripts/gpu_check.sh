#!/usr/bin/env bash
# Everything that only a GPU can show, in two to three minutes, as one table; exit code 1 where something fails.
# Takes $PYTHON, or .venv's interpreter if there is one, or python3: a GPU machine has its own build of PyTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
exec "$python" scripts/gpu_check.py "$@"
