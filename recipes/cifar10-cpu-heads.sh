#!/usr/bin/env bash
# Class heads of a CIFAR-10 network at equal compute, 2e13 FLOP each: the table of docs/training.md,
# about an hour of one CPU core. Clean accuracy on 200 held-out images, and on 50 of them
# under PGD of 10 steps at L-infinity EPS (2/255), of the diffusion classifier alone. The kinds of
# heads are those of digits-class-heads.sh. It continues when it is run again.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS="${RUNS:-runs/cifar10-cpu}"
source recipes/cifar10-settings.sh
OUT="$RUNS/class-heads"
EPS="${EPS:-0.00784}"
MEASURED="$OUT/linf-$EPS"
TRAIN=(
    "$PYTHON" -m training.train --data "$DATA" --resume auto
    --network.patch 2 --network.width 32 --network.width-multipliers 1 2 4
    --network.blocks-per-level 2 --objective.noise.mean 0 --objective.noise.std 0.6
    --batch-size 64 --learning-rate 2e-3 --warmup 50 --weight-decay 0.02 --ema-half-lives 5000
    --validation-images 100 --checkpoint-every 50
    --rdc.classifier.sigma-min 0.7 --rdc.classifier.sigma-max 3
)
CALIBRATE=("$PYTHON" -m training.calibration --data "$DATA" --levels 4 --eps "$EPS")
source recipes/class-heads-settings.sh

HEADS=(
    --network.conditioning multihead --network.head-blocks 1 --augment flip
    --rdc.classifier.levels 2
)
CLASSIFIER=(
    --network.conditioning classifier --network.head-blocks 0 --augment flip-shift
    --objective.image-share 0.2 --objective.class-noise.mean 0 --objective.class-noise.std 0.6
    --rdc.classifier.estimator posterior --rdc.classifier.draws 2
)
run images 333 "${HEADS[@]}"
run classifier 820 "${CLASSIFIER[@]}"
run teacher 410 "${CLASSIFIER[@]}"
run distilled 75 "${HEADS[@]}" --teacher "$OUT/teacher" --init "$OUT/teacher" \
    --objective.image-share 0 --objective.teacher-classes 2 --objective.off-data 0.03
measure images images
measure distilled distilled
measure identity classifier --estimator losses --draws 1
measure posterior classifier --estimator posterior --draws 8

print_table
