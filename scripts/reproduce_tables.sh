#!/usr/bin/env bash
# Published tables from raw data:
# bash scripts/reproduce_tables.sh [qnrf|jhu|nwpu|ucf50|sha|shb ...] [vgg|vgg_trans ...] [gst|bl|... ...] [options]
set -euo pipefail
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
shift
exec "$python" scripts/reproduce_tables.py "$@"
