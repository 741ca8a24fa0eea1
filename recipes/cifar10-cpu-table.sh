#!/usr/bin/env bash
# RDC's settings for the network of cifar10-cpu.sh, chosen under attack on held-out images
# ($RUNS/cifar10-rdc), then nine defenses under three threats on the first 256 test images
# ($RUNS/table), with the variables of cifar10-table.sh. It continues when it is run again.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUNS="${RUNS:-runs/cifar10-cpu}"
source recipes/cifar10-settings.sh

[[ -f $RUNS/cifar10-rdc/calibration.json ]] ||
    "$PYTHON" -m training.calibration --model "$(model cifar10)" --out "$RUNS/cifar10-rdc" \
        --data "$DATA" --images "${CALIBRATION_IMAGES:-250}" --attacked "${ATTACKED:-100}" \
        --steps 10 --estimator posterior --draws 32 --sigma-min 0.7 1.0 \
        --budget 0.031373 --maximization-sigma 0.4

export PYTHON DATA RDC="$RUNS/cifar10-rdc"
export STANDARD="$(model cifar10-cnn)" TRADES="$(model cifar10-trades)"
export IMAGES="${IMAGES:-256}" PURIFIER_STEPS="${PURIFIER_STEPS:-5}" PROCESSES="${PROCESSES:-$(nproc)}"
export ATTACK_STEPS="${ATTACK_STEPS:-10}" QUERIES="${QUERIES:-50}" DRAWS="${DRAWS:-2}"
export JUDGED="${JUDGED:-4}" ROWS="${ROWS:-32}"
bash recipes/cifar10-table.sh
