#!/usr/bin/env bash
# Published tables from raw data:
# bash scripts/reproduce_tables.sh [qnrf|jhu|nwpu|sha|shb ...] [vgg|vgg_trans ...] [gst|bl|... ...] [options]
exec bash "$(dirname "$0")/experiments.sh" reproduce_tables "$@"
