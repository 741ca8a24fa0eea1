#!/usr/bin/env bash
# CIFAR-10 from the archive to the table, in this order. Each line is a command of its own that
# continues where it was stopped, so that they may also be given one by one; docs/cifar10-gpu.md has
# the minutes that each should take on a GPU, and what it leaves.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh

# finished NAME...: end here where LIMIT stopped one of these trainings. What comes next learns from
# it or attacks it, and would be refused once it has changed.
finished() {
    local name
    for name; do
        [[ -f $RUNS/$name/training.json ]] && continue
        echo "LIMIT=$LIMIT minutes stopped the training of $name: the same command continues it" >&2
        exit 0
    done
}

bash recipes/cifar10-data.sh         # the folder, decoded once
bash recipes/cifar10-teacher.sh      # a label-conditional denoiser
finished teacher
bash recipes/cifar10-multihead.sh    # one pass for all classes, distilled from it
finished multihead
bash recipes/cifar10-classifiers.sh  # wide ResNets, standard and TRADES
finished standard trades
bash recipes/cifar10-calibrate.sh    # RDC's settings, on held-out images
bash recipes/cifar10-speed.sh        # against the published algorithm
DEFENSES="cnn trades diffusion rdc maximization" TABLE=table-512 bash recipes/cifar10-table.sh
IMAGES=128 TABLE=table-128 bash recipes/cifar10-table.sh
