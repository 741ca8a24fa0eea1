#!/usr/bin/env bash
# Class heads for CIFAR-10 on a CPU, distilled from the network of cifar10-cpu.sh, and both measured
# under attack on held-out images. It continues when it is run again. Not run yet.
#
# Compute: an image whose class and one other are taught costs 2.1 GFLOP; 3,600 steps of 64 images are
# 4.8e14 FLOP, as many as half of the teacher's training. A comparison at equal compute is that of
# these heads, taught by a teacher of 10,000 steps (TEACHER), with a network of 20,000 steps.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS="${RUNS:-runs/cifar10-cpu}"
source recipes/cifar10-settings.sh
TEACHER="${TEACHER:-$RUNS/cifar10}"

"$PYTHON" -m training.train --out "$RUNS/heads" --data "$DATA" --resume auto \
    --network.patch 2 --network.conditioning multihead --network.head-blocks 1 \
    --network.width 32 --network.width-multipliers 1 2 4 --network.blocks-per-level 2 \
    --teacher "$TEACHER" --init "$TEACHER" --objective.image-share 0 \
    --objective.teacher-classes 2 --objective.off-data 0.03 \
    --objective.noise.mean 0 --objective.noise.std 0.6 \
    --steps "${STEPS:-3600}" --batch-size 64 --learning-rate 1e-3 --warmup 200 \
    --weight-decay 0.02 --augment flip --ema-half-lives 20000 \
    --rdc.classifier.levels 8 --rdc.classifier.sigma-min 0.5 --rdc.classifier.sigma-max 3 \
    --validate-every 600 --validation-images 250 --checkpoint-every 200

# measure NAME MODEL FLAGS...: accuracy on held-out images, clean and under attack.
measure() {
    local name="$1" model="$2"
    shift 2
    [[ -f $RUNS/$name/calibration.json ]] ||
        "$PYTHON" -m training.calibration --model "$model" --out "$RUNS/$name" --data "$DATA" \
            --images "${IMAGES:-250}" --attacked "${ATTACKED:-100}" --steps 20 \
            --sigma-min 0.35 0.5 0.7 --maximization-steps "$@"
}
measure heads-rdc "$RUNS/heads" --levels 8 --sigma-max 3
measure posterior-rdc "$TEACHER" --estimator posterior --draws 8
