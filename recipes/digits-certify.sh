#!/usr/bin/env bash
# Certified accuracy on digits: the tables of docs/methods/certification.md, an estimated hour and a
# half on one CPU core.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh
IMAGES="${IMAGES:-200}"
WIDE="${WIDE:-40}"

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

for sigmas in "0.25 0.125" "0.5 0.25"; do
    read -r sigma half <<< "$sigmas"
    for method in sequential fixed; do
        certify "cnn-$sigma-$method" --sigma "$sigma" --method "$method" --images "$IMAGES" \
            "${CNN[@]}"
    done
    # The sequential test asked about one radius.
    for radius in 0 "$half" "$sigma"; do
        certify "cnn-$sigma-at-$radius" --sigma "$sigma" --radii "$radius" --images "$IMAGES" \
            "${CNN[@]}"
    done
done
for method in sequential fixed; do
    for sigma in 0.25 0.5; do
        certify "denoised-$sigma-$method" --sigma "$sigma" --method "$method" \
            --images "$IMAGES" --defense.kind denoised
    done
done
for kind in diffusion epndc apndc; do
    for sigma in 0.25 0.5; do
        certify "$kind-$sigma-sequential" --sigma "$sigma" --images "$IMAGES" --defense.kind "$kind"
        certify "$kind-$sigma-fixed" --sigma "$sigma" --method fixed --images "$WIDE" \
            --defense.kind "$kind"
    done
done

# The same g certified at larger radii, and attacked.
certify cnn-wide --sigma 0.25 --radii 0 0.125 0.25 0.375 0.5 --images "$WIDE" "${CNN[@]}"
python -m evaluation.evaluate --out results/certify/attacked "${CNN[@]}" --defense.sigma 0.25 \
    --defense.noisy-copies 16 --norm l2 --eps 0.125 0.25 0.5 1 --images "$WIDE" --check-images 0 \
    --suite.steps 10 --suite.queries 50 --suite.eot-samples 3 --eval-draws 5 --batch-size 40 \
    --suite.only "*exact/apgd-margin" square
python -m evaluation.report results/certify/attacked results/certify/cnn-wide
