#!/usr/bin/env bash
# The packaged model `cifar10`: an unconditional denoiser with a classifier of noised images on its
# encoder, for the CPU. DATA is a folder split/class/*.jpg (recipes/cifar10-data.sh makes one), RUNS
# is where everything goes; a run that was stopped continues with the same command.
#
# Two trainings: of everything ($RUNS/cifar10-start, STEPS), then from it with class noise at higher
# levels ($RUNS/cifar10, LAST_STEPS), where robustness to Linf 8/255 comes from (docs/cifar10.md).
#
# Compute: a row that learns the class costs 3 x 0.092 GFLOP (encoder, forward and backward), a row
# that learns to denoise 3 x 0.262; with a fifth of the rows denoising 0.38 GFLOP each. 14,400 steps
# of 128 rows are 7.0e14 FLOP: about 6 hours of one 2020s CPU core.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS="${RUNS:-runs/cifar10-cpu}"
source recipes/cifar10-settings.sh

# network NAME FLAGS...: train $RUNS/NAME.
network() {
    local out="$RUNS/$1"
    shift
    "$PYTHON" -m training.train --out "$out" --data "$DATA" --resume auto \
        --network.patch 2 --network.conditioning classifier --network.head-blocks 0 \
        --network.width 32 --network.width-multipliers 1 2 4 --network.blocks-per-level 2 \
        --batch-size 128 --warmup 300 --weight-decay 0.02 --augment flip-shift \
        --ema-half-lives 50000 200000 --objective.image-share 0.2 \
        --rdc.classifier.estimator posterior --rdc.classifier.draws 8 \
        --validate-every 500 --validation-images 500 --checkpoint-every 250 "$@"
}
network cifar10-start --steps "${STEPS:-10400}" --learning-rate 2e-3 \
    --objective.class-noise.mean -0.6 --objective.class-noise.std 0.6 \
    --rdc.classifier.sigma-min 0.5
network cifar10 --init "$RUNS/cifar10-start" --steps "${LAST_STEPS:-4000}" --learning-rate 1e-3 \
    --objective.class-noise.mean 0 --objective.class-noise.std 0.45 \
    --rdc.classifier.sigma-min 1.0
