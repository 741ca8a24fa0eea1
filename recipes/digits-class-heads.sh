#!/usr/bin/env bash
# Class heads of a digits network at equal compute, about 4.8e12 FLOP each: the table of
# docs/training.md, about 25 minutes on one busy CPU core. Clean accuracy on 200 held-out images,
# and on 50 of them under PGD of 10 steps at L-infinity 0.2, of the diffusion classifier alone.
#
#   images     the head of the true class learns to denoise
#   optimal    all heads learn from the exact denoiser of the training images
#   distilled  all heads learn from a network with a classifier of noised images, whose training
#              takes half of the compute
#   identity   such a network itself, with heads by identity: D + sigma^2 grad log p(y | x, sigma)
#   posterior  the same network, asked for its own posterior at the lowest noise level
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh
OUT="${OUT:-runs/class-heads}"
MEASURED="$OUT/measured"
TRAIN=(launch training.train "${NETWORK[@]}" "${RDC[@]}" --warmup 20)
CALIBRATE=(python -m training.calibration --levels 12 --eps 0.2)
source recipes/class-heads-settings.sh

CLASSIFIER=(
    --network.conditioning classifier --network.head-blocks 0 --objective.image-share 0.2
    --objective.class-noise.mean 0.2 --objective.class-noise.std 0.55
    --rdc.classifier.estimator posterior
)
run images 800
run optimal 790 --teacher optimal --objective.image-share 0 --objective.off-data 0.2
run classifier 3266 "${CLASSIFIER[@]}"
run teacher 1633 "${CLASSIFIER[@]}"
run distilled 157 --teacher "$OUT/teacher" --init "$OUT/teacher" --objective.image-share 0 \
    --objective.off-data 0.2
measure images images
measure optimal optimal
measure distilled distilled
measure identity classifier --estimator losses
measure posterior classifier --estimator posterior --draws 12

print_table
