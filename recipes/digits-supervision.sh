#!/usr/bin/env bash
# What the heads of a digits network should learn from: the table of docs/digits.md, about 15 minutes
# on 2 CPU cores. Short runs (STEPS) of the packaged network, measured on the validation split.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS="${STEPS:-800}"
source recipes/digits-settings.sh
IMAGES="${IMAGES:-60}"

# run NAME FLAGS...: train one variant and attack it
run() {
    local out="runs/supervision/$1"
    shift
    launch training.train --out "$out" "${NETWORK[@]}" "${RDC[@]}" --steps "$STEPS" "$@"
    python -m evaluation.demo --model "$out" --split validation --images "$IMAGES" --steps 20 \
        --eps 0.2 --picture None --json "$out/robustness.json"
}

run conditional --network.conditioning label --network.head-blocks 0
run plain
run from-conditional --teacher runs/supervision/conditional --objective.image-share 0
run optimal --teacher optimal --objective.image-share 0
run optimal-off-data --teacher optimal --objective.image-share 0 --objective.off-data 0.2
run optimal-last-layer --teacher optimal --objective.image-share 0 --objective.off-data 0.2 \
    --network.head-blocks 0
