#!/usr/bin/env bash
# One of the experiments: bash scripts/experiments.sh compare_losses|reproduce_tables|crowds [its options; --help lists them]
# crowds: from BL to GST rung by rung on real crowds, of which val is counted.
set -euo pipefail
case ${1:-} in
    compare_losses | reproduce_tables) ;;
    crowds) set -- compare_losses --losses ladder --split val --out runs/crowds "${@:2}" ;;
    *) echo "error: '${1:-}' is no experiment; name compare_losses, reproduce_tables or crowds" >&2; exit 2 ;;
esac
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
exec "$python" "scripts/$2.py" "${@:3}"
