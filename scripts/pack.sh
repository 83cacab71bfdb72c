#!/usr/bin/env bash
# One archive of a trained model to hand on: bash scripts/pack.sh RUN [--results DIR] [--out FILE.zip]
set -euo pipefail
set -- requirements-export.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
exec "$python" scripts/pack.py "$@"
