#!/usr/bin/env bash
# RDC's noise levels, maximization and temperature for the multi-head network, chosen under attack on
# held-out images: $RUNS/rdc. MODEL: another network.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh

if [[ ! -f $RUNS/rdc/calibration.json ]]; then
    "$PYTHON" -m training.calibration --model "${MODEL:-$(model multihead)}" --out "$RUNS/rdc" \
        --data "$DATA" --images "${IMAGES:-1000}" --attacked "${ATTACKED:-100}" \
        --steps "${ATTACK_STEPS:-20}" --eps 0.031373 --batch-size "${ROWS:-100}"
fi
if [[ -n $EXPORT ]]; then
    rm -rf "${EXPORT:?}/rdc"
    "$PYTHON" -m rdc export "$RUNS/rdc" "$EXPORT/rdc" --dtype bfloat16 --max-shard-size 15MB
    cp "$RUNS/rdc/calibration.json" "$EXPORT/rdc/"
fi
