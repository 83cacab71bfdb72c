#!/usr/bin/env bash
# The long form of the fault tests (about twenty minutes on two cores; the short form is part of scripts/test.sh):
#   bash scripts/faults.sh [-k "splat or train"]    kill every stage at $GST_KILLS (100) random moments, run it again, compare
#   bash scripts/faults.sh --fuzz [-k coco]         give every reader $GST_CASES (2000) damaged files
# Other options go to pytest.
set -euo pipefail
set -- requirements-test.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
test=kills
if [ "${1:-}" = --fuzz ]; then test=fuzz; shift; fi
export GST_KILLS=${GST_KILLS:-100} GST_CASES=${GST_CASES:-2000}
exec "$python" -m pytest -v "tests/faults/test_$test.py" "$@"
