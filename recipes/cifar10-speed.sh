#!/usr/bin/env bash
# Images per second of RDC here against the published algorithm, on random weights of the published
# network (EDM's DDPM++, 56 million parameters), and of the training step against a plain loop.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh

mkdir -p "$RUNS"
PRECISION=$([[ ${#FAST[@]} -gt 0 ]] && echo bf16 || echo no)
"$PYTHON" -m benchmarks.published --network.conditioning label --network.architecture ddpmpp \
    --network.width "${WIDTH:-128}" --network.width-multipliers ${MULTIPLIERS:-2 2 2} \
    --network.blocks-per-level "${BLOCKS:-4}" --network.attention-resolutions ${ATTENTION-16} \
    --levels "${LEVELS:-125}" --few "${FEW:-16}" --images "${ROWS:-16}" \
    --decisions "${IMAGES:-64}" --repeats "${REPEATS:-2}" --precision "$PRECISION" \
    --json "$RUNS/speed.json" | tee "$RUNS/speed.txt"
"$PYTHON" -m benchmarks.training --network.width "${WIDTH:-64}" \
    --network.width-multipliers ${MULTIPLIERS:-2 2 3} --network.blocks-per-level "${BLOCKS:-2}" \
    --network.attention-resolutions ${ATTENTION-16} --batch-size "$BATCH" --steps 10 \
    --repeats "${REPEATS:-3}" "${FAST[@]}" | tee -a "$RUNS/speed.txt"
if [[ -n $EXPORT ]]; then
    mkdir -p "$EXPORT"
    cp "$RUNS/speed.json" "$RUNS/speed.txt" "$EXPORT/"
fi
