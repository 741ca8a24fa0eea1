#!/usr/bin/env bash
# The packaged classifier `digits-trades`: the CNN under TRADES at eps 0.1, the adversarially trained
# baseline and AGDM's auxiliary network. Writes runs/digits-trades.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh

launch training.classifier --out runs/digits-trades --objective.kind trades --objective.eps 0.1
