#!/usr/bin/env bash
# The packaged classifier's network and data under today's trainer, a few seconds. Writes
# runs/digits-cnn. The packaged weights themselves are of an earlier commit: see their card.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh

launch training.classifier --out runs/digits-cnn
