#!/usr/bin/env bash
# The packaged model `digits`, about four minutes on 2 CPU cores. Writes runs/digits.
# All heads learn from the exact denoiser of the training images, on and off the data, at the noise
# levels that the classifier and the maximization use.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh

launch training.train --out runs/digits "${NETWORK[@]}" "${RDC[@]}" --steps "$STEPS" \
    --teacher optimal --objective.image-share 0 --objective.off-data 0.2
