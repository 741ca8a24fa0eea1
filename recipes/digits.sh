#!/usr/bin/env bash
# The two packaged digits models: `make train-digits`, under five minutes on 2 CPU cores.
# Writes runs/digits and runs/digits-cnn; copy their files to rdc/pretrained to ship them.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh
STEPS="${STEPS:-4000}"  # fewer for a rehearsal

launch training.classifier --out runs/digits-cnn

# All heads learn from the exact denoiser of the training images, on and off the data, at the noise
# levels that the classifier and the maximization use.
launch training.train --out runs/digits "${NETWORK[@]}" "${RDC[@]}" --steps "$STEPS" \
    --teacher optimal --objective.image-share 0 --objective.off-data 0.2
