#!/usr/bin/env bash
# A label-conditional denoiser of CIFAR-10: the teacher of cifar10-multihead.sh. MINUTES of training
# in all, in as many commands as LIMIT makes of it. INIT: weights to go on from, in place of random
# ones, where the run itself is lost.
set -euo pipefail
cd "$(dirname "$0")/.."
MINUTES="${MINUTES:-14}"
source recipes/cifar10-settings.sh

FLAGS=(
    "${TRUNK[@]}" "${LEARNING[@]}" --network.conditioning label --objective.label-dropout 0.1
    --init "${INIT:-none}" --learning-rate "${RATE:-1e-3}" --warmup "${WARMUP:-300}"
    --rdc.classifier.levels 2 --rdc.classifier.sigma-max 2
)
steps=$(count teacher training.train "${FLAGS[@]}")
train teacher training.train "${FLAGS[@]}" --steps "$steps" --validation-images 500 \
    --validate-every "${EVERY:-2000}" --checkpoint-every "${EVERY:-2000}"
carry teacher
