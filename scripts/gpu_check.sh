#!/usr/bin/env bash
# Everything that only a GPU can show, in a few minutes: the tests marked gpu, then what training, losses and fitting cost there:
#   bash scripts/gpu_check.sh [tests training losses splat]
# Exit code 1 where a test fails or a benchmark breaks.
# Takes $PYTHON, or .venv's interpreter if there is one, or python3: a GPU machine has its own build of PyTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"error: PyTorch {torch.__version__} sees no CUDA GPU here; these checks need one")'
code=0
[ $# -gt 0 ] || set -- tests training losses splat
for name in "$@"; do
    echo "== $name"
    case $name in
        tests) "$python" -m pytest -m gpu -p no:cacheprovider $(grep -l "mark.gpu" tests/*.py) || code=1 ;;
        training | losses | splat) "$python" "benchmarks/bench_$name.py" --device cuda || code=1 ;;
        *) echo "error: $name: no such part; name tests, training, losses or splat" >&2; exit 2 ;;
    esac
done
exit $code
