#!/usr/bin/env bash
# One pass for all classes: a multi-head denoiser of at most 16 million parameters that learns the
# teacher's estimate for every class, on the images and near them. It starts from the teacher's
# trunk, or from INIT, an earlier state of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
MINUTES="${MINUTES:-14}"
source recipes/cifar10-settings.sh
TEACHER="${TEACHER:-$(model teacher)}"

FLAGS=(
    "${TRUNK[@]}" "${LEARNING[@]}" --network.conditioning multihead
    --network.head-blocks 1 --network.head-width "${HEAD_WIDTH:-16}"
    --teacher "$TEACHER" --objective.image-share 0 --objective.off-data 0.06
    --objective.teacher-classes "${TEACHER_CLASSES:-0}"
    --init "${INIT:-$TEACHER}" --learning-rate "${RATE:-1e-3}" --warmup "${WARMUP:-300}"
    --rdc.classifier.levels 8 --rdc.classifier.sigma-max 2
)
steps=$(count multihead training.train "${FLAGS[@]}")
train multihead training.train "${FLAGS[@]}" --steps "$steps" --validation-images 1000 \
    --validate-every "${EVERY:-1000}" --checkpoint-every "${EVERY:-1000}"
carry multihead
