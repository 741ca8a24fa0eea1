#!/usr/bin/env bash
# The packaged classifier `digits-cnn`, a few seconds. Writes runs/digits-cnn.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh

launch training.classifier --out runs/digits-cnn
