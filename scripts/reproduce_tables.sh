#!/usr/bin/env bash
# From raw data to MAE and MSE, beside the published numbers; the same command goes on where it was interrupted:
#   bash scripts/reproduce_tables.sh qnrf|jhu|nwpu|sha|shb [vgg|vgg_trans|bl|dm-count|gloss ...] [--seeds 3] [options of train_gs.py]
#   bash scripts/reproduce_tables.sh qnrf --checkpoint best_model.pth [options of test.py]    evaluates a released file instead
# vgg and vgg_trans are GST on that network, the others losses on vgg with their published recipes. NWPU-Crowd's test annotations
# are not public: val is counted there.
set -euo pipefail
set -- requirements.txt "$@"
source "$(dirname "$0")/venv.sh"
shift

name=${1:-} split=test options=()
shanghaitech=https://github.com/desenzhou/ShanghaiTechDataset
case $name in
    qnrf) script=ucf raw=data/UCF-QNRF_ECCV18 data=data/UCF-Train-Val-Test origin=https://www.crcv.ucf.edu/data/ucf-qnrf/ ;;
    jhu) script=jhu raw=data/jhu_crowd_v2.0 data=data/JHU origin=http://www.crowd-counting.com ;;
    nwpu) script=nwpu raw=data/NWPU-Crowd data=data/NWPU origin=https://www.crowdbenchmark.com/nwpucrowd.html split=val ;;
    sha) script=sh raw=data/ShanghaiTech data=data/SHA origin=$shanghaitech options=(--part A) ;;
    shb) script=sh raw=data/ShanghaiTech data=data/SHB origin=$shanghaitech options=(--part B) ;;
    *) echo "error: '$name' is no data set; name qnrf, jhu, nwpu, sha or shb" >&2; exit 2 ;;
esac
shift
[ -d "$raw" ] || fail "$raw: no such folder; unpack what $origin offers there"
if [ "$name" = qnrf ] && [ -f "$raw/train.txt" ]; then  # the lists that published work on UCF-QNRF uses
    options=(--train-list "$raw/train.txt" --val-list "$raw/val.txt")
fi
"$python" "preprocess_dataset_$script.py" --input-dataset-path "$raw" --output-dataset-path "$data" "${options[@]}"

if [ "${1:-}" = --checkpoint ]; then
    "$python" test.py --save-path "${2:-}" --data-dir "$data" --split "$split" --out "runs/$name/released" "${@:3}"
    exit
fi
losses=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    losses+=("$1")
    shift
done
[ ${#losses[@]} -gt 0 ] || losses=(vgg vgg_trans bl dm-count gloss)
case " ${losses[*]} " in
    *" vgg "* | *" vgg_trans "*)
        "$python" 2dgs_counting_1gs_gsplat.py --root-path "$data"
        "$python" GS2D/process_gaussians.py --root-path "$data"
        ;;
esac
exec "$python" scripts/compare_losses.py "$data" --losses "${losses[@]}" --dataset "$name" --published "$name" --recipes \
    --split "$split" --seeds 1 --out "runs/$name" "$@"
