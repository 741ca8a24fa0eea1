#!/usr/bin/env bash
# The ordinary classifiers of CIFAR-10: one that purifiers protect, and one under TRADES, which is
# the adversarially trained baseline and AGDM's auxiliary network.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh

FLAGS=(
    --architecture "${ARCHITECTURE:-wrn-28-4}" --augment flip-shift
    --batch-size "$BATCH" --learning-rate "${RATE:-2e-3}" --warmup "${WARMUP:-300}"
    --weight-decay 0.05 --ema-half-lives 20000
    --validate-every "${EVERY:-1000}" --checkpoint-every "${EVERY:-1000}"
)
# classifier NAME MINUTES FLAGS...
classifier() {
    local name="$1" MINUTES="$2" steps
    shift 2
    steps=$(count "$name" training.classifier "${FLAGS[@]}" "$@")
    train "$name" training.classifier "${FLAGS[@]}" "$@" --steps "$steps"
    carry "$name"
}
classifier standard "${STANDARD_MINUTES:-3}"
classifier trades "${TRADES_MINUTES:-9}" --objective.kind trades --objective.eps 0.031373
