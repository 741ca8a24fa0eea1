#!/usr/bin/env bash
# The packaged classifiers `cifar10-cnn` (ordinary) and `cifar10-trades` (adversarially trained,
# L-infinity 8/255), for the CPU: both, or the one that is named. DATA is a folder split/class/*.jpg,
# RUNS is where everything goes; a run that was stopped continues with the same command.
#
#   bash recipes/cifar10-cpu-classifiers.sh [cnn | trades]
#
# Compute, as the runs count it: WRN-16-2 has 691,674 parameters, and an image costs 0.606 GFLOP to
# learn from. `cnn`: 12,000 steps of 128 images (34 epochs of 45,000) are 9.3e14 FLOP. `trades`: with
# 3 attack steps an image costs 2.627 GFLOP; 5,800 steps of 64 images (8 epochs) are 9.8e14 FLOP.
# Each takes about 7 hours of one CPU core at 40 GFLOP/s.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS="${RUNS:-runs/cifar10-cpu}"
source recipes/cifar10-settings.sh

# classifier NAME FLAGS...: train $RUNS/cifar10-NAME.
classifier() {
    local out="$RUNS/cifar10-$1"
    shift
    "$PYTHON" -m training.classifier --out "$out" --data "$DATA" --resume auto \
        --architecture wrn-16-2 --augment flip-shift --weight-decay 0.05 \
        --validate-every 500 --validation-images 500 --checkpoint-every 250 "$@"
}

for name in ${1:-cnn trades}; do
    case "$name" in
        cnn) classifier cnn --steps "${STEPS:-12000}" --batch-size 128 --learning-rate 3e-3 \
            --warmup 500 --ema-half-lives 20000 50000 ;;
        trades) classifier trades --steps "${STEPS:-5800}" --batch-size 64 --learning-rate 2e-3 \
            --warmup 300 --ema-half-lives 10000 30000 --objective.kind trades \
            --objective.eps 0.031373 --objective.attack-steps 3 --objective.relative-step 0.5 ;;
        *) echo "error: $name is neither cnn nor trades" >&2; exit 2 ;;
    esac
done
