#!/usr/bin/env bash
# Trains the same network with every loss: bash scripts/compare_losses.sh DATA [options of scripts/compare_losses.py and train_gs.py]
exec bash "$(dirname "$0")/experiments.sh" compare_losses "$@"
