#!/usr/bin/env bash
# Nine defenses under three threats, on the first test images: $RUNS/$TABLE. It continues when it is
# run again. DEFENSES and NORMS choose some, IMAGES how many images (each choice of images under a
# TABLE of its own), PROCESSES how many share them; how many network evaluations that takes is in
# docs/cifar10-gpu.md. What EXPORT gets when LIMIT is over can be unpacked into RUNS and continued.
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/cifar10-settings.sh
TABLE="${TABLE:-table}"

launch=()
if [[ ${PROCESSES:-1} != 1 ]]; then
    export OMP_NUM_THREADS=1
    launch=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
fi
timeout "$(seconds_left)" "$PYTHON" "${launch[@]}" -m evaluation.sweep --out "$RUNS/$TABLE" \
    --data "$DATA" --images "${IMAGES:-512}" \
    --model "${RDC:-$RUNS/rdc}" --classifier "${STANDARD:-$RUNS/standard}" \
    --trades "${TRADES:-$RUNS/trades}" --purifier-steps "${PURIFIER_STEPS:-10}" \
    --defenses ${DEFENSES:-cnn trades diffusion rdc maximization diffpure gdmp contrastive agdm} \
    --norms ${NORMS:-linf l2 stadv} --linf 8/255 --l2 0.5 --stadv 0.05 \
    --suite.steps "${ATTACK_STEPS:-20}" --suite.targets "${TARGETS:-2}" \
    --suite.queries "${QUERIES:-100}" --suite.eot-samples "${DRAWS:-4}" --eval-draws "${JUDGED:-8}" \
    --batch-size "${ROWS:-128}" --max-rows "${ROWS:-128}" || [[ $? == 124 ]]
if [[ -n $EXPORT && -d $RUNS/$TABLE ]]; then  # without the attacked images, which are large
    mkdir -p "$EXPORT"
    tar cJf "$EXPORT/$TABLE.tar.xz" --exclude images -C "$RUNS" "$TABLE"
fi
