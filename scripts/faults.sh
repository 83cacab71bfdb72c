#!/usr/bin/env bash
# The long form of the fault tests (about twenty minutes on two cores; the short form is part of scripts/test.sh):
#   bash scripts/faults.sh [--kills 100] [-k "splat or train"]        kill every stage at random moments, run it again, compare
#   bash scripts/faults.sh --fuzz [--cases 2000] [-k coco]            give every reader damaged files
# Other options go to pytest.
set -euo pipefail
set -- requirements-test.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
test=kills
export GST_KILLS=100 GST_CASES=2000
while [ $# -gt 0 ]; do
    case $1 in
        --fuzz) test=fuzz; shift ;;
        --kills) GST_KILLS=$2; shift 2 ;;
        --cases) GST_CASES=$2; shift 2 ;;
        *) break ;;
    esac
done
exec "$python" -m pytest -v "tests/faults/test_$test.py" "$@"
