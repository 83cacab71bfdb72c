#!/usr/bin/env bash
# Trains the same network with every loss: bash scripts/compare_losses.sh DATA [options of scripts/compare_losses.py and train_gs.py]
set -euo pipefail
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
exec "$python" scripts/compare_losses.py "${@:2}"
