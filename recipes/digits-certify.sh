#!/usr/bin/env bash
# Certified accuracy on digits: the tables of docs/methods/certification.md, an estimated half hour
# on 2 CPU cores. IMAGES are certified by the diffusion classifiers, CHEAP by the others.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh
IMAGES="${IMAGES:-40}"
CHEAP="${CHEAP:-100}"

launch training.classifier --out runs/digits-noise --objective.noise 1.0 --augment shift \
    --batch-size 64
CNN=(--defense.kind classifier --defense.classifier runs/digits-noise)

# certify NAME FLAGS...: certify one defense; prints a table
certify() {
    local name="$1"
    shift
    echo "$name"
    python -m evaluation.certify --out "results/certify/$name" "$@"
}

for sigma in 0.25 0.5; do
    certify "cnn-$sigma" --sigma "$sigma" --images "$CHEAP" "${CNN[@]}"
    certify "denoised-$sigma" --sigma "$sigma" --images "$CHEAP" --defense.kind denoised
    for kind in diffusion epndc apndc; do
        certify "$kind-$sigma" --sigma "$sigma" --images "$IMAGES" --defense.kind "$kind"
    done
done

# What the sequential test saves.
certify fixed --sigma 0.25 --images "$CHEAP" --method fixed "${CNN[@]}"
for radius in 0 0.125 0.25; do
    certify "cnn-at-$radius" --sigma 0.25 --radii "$radius" --images "$CHEAP" "${CNN[@]}"
done

# The same g certified at larger radii, and attacked.
certify cnn-wide --sigma 0.25 --radii 0 0.125 0.25 0.375 0.5 --images "$IMAGES" "${CNN[@]}"
python -m evaluation.evaluate --out results/certify/attacked "${CNN[@]}" --defense.sigma 0.25 \
    --defense.noisy-copies 16 --norm l2 --eps 0.125 0.25 0.5 1 --images "$IMAGES" --check-images 0 \
    --suite.steps 10 --suite.queries 50 --suite.eot-samples 3 --eval-draws 5 --batch-size 40 \
    --suite.only "*exact/apgd-margin" square
