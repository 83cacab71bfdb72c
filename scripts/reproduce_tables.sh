#!/usr/bin/env bash
# GST's published table from raw data: bash scripts/reproduce_tables.sh [qnrf|jhu|nwpu|ucf50 ...] [vgg|vgg_trans ...] [options]
set -euo pipefail
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
exec "$python" scripts/reproduce_tables.py "$@"
