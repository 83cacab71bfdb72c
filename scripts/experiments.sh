#!/usr/bin/env bash
# One of the experiments: bash scripts/experiments.sh compare_losses|reproduce_tables|crowds [its options]
# crowds: from BL to GST rung by rung on real crowds, of which val is counted.
set -euo pipefail
case ${1:-} in
    compare_losses | reproduce_tables) exec bash "$(dirname "$0")/$1.sh" "${@:2}" ;;
    crowds) exec bash "$(dirname "$0")/compare_losses.sh" --losses ladder --split val --out runs/crowds "${@:2}" ;;
    *) echo "error: '${1:-}' is no experiment; name compare_losses, reproduce_tables or crowds" >&2; exit 2 ;;
esac
