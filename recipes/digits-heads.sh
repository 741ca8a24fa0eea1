#!/usr/bin/env bash
# Conditional, multi-head and distilled networks side by side: the table of docs/digits.md, about
# forty minutes on 2 CPU cores. All are trained as long as the packaged network, which is the last
# row (it learned from the exact denoiser of the training images).
set -euo pipefail
cd "$(dirname "$0")/.."
source recipes/digits-settings.sh
IMAGES="${IMAGES:-200}"

# run NAME FLAGS...: train one variant and attack it
run() {
    local name="$1"
    shift
    launch training.train --out "runs/heads/$name" "${NETWORK[@]}" "${RDC[@]}" --steps "$STEPS" "$@"
    attack "$name" "runs/heads/$name"
}

attack() {
    python -m evaluation.demo --model "$2" --split validation --images "$IMAGES" --steps 20 \
        --eps 0.2 --picture None --json "runs/heads/$1.json"
}

run conditional --network.conditioning label --network.head-blocks 0
run multihead
run distilled --teacher runs/heads/conditional --objective.image-share 0
attack packaged digits
python -m benchmarks.cost runs/heads/conditional runs/heads/multihead runs/heads/distilled digits

python - <<'END'
import json
from pathlib import Path

print("| network | clean | diffusion classifier | RDC, worst of three |")
for name in ("conditional", "multihead", "distilled", "packaged"):
    results = json.loads(Path(f"runs/heads/{name}.json").read_text())["results"]
    rdc = results["RDC"]

    def share(figure):
        low, high = (f"{100 * figure[end]:.0f}" for end in ("low", "high"))
        return f"{100 * figure['accuracy']:.1f} [{low}, {high}]"

    alone = results["diffusion classifier"]["eps"]["0.2"]["worst"]
    print(f"| {name} | {share(rdc['clean'])} | {share(alone)} | "
          f"{share(rdc['eps']['0.2']['worst'])} |")
END
