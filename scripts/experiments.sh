#!/usr/bin/env bash
# One of the experiments: bash scripts/experiments.sh compare_losses|reproduce_tables|crowds [its options; --help lists them]
set -euo pipefail
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
experiment=${2:-}
[ -n "$experiment" ] && [ -f "scripts/$experiment.py" ] ||
    fail "scripts/$experiment.py: no such experiment; name compare_losses, reproduce_tables or crowds"
shift 2
exec "$python" "scripts/$experiment.py" "$@"
