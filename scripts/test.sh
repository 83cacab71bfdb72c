#!/usr/bin/env bash
# All tests: makes .venv if there is none, installs, runs pytest with a process for each core. Arguments go to pytest.
set -euo pipefail
set -- requirements-test.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
exec "$python" -m pytest -n auto --dist loadfile "$@"
