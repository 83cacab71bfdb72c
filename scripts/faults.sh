#!/usr/bin/env bash
# The long form of the fault tests (about twenty minutes on two cores; the short form is part of scripts/test.sh):
#   bash scripts/faults.sh [--kills 100] [--stages splat train ...]   kill every stage at random moments, run it again, compare
#   bash scripts/faults.sh --fuzz [--cases 2000]                      give every reader damaged files
set -euo pipefail
set -- requirements-test.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
exec "$python" tests/faults/long.py "$@"
