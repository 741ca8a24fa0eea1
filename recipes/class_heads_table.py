"""Table of a comparison of class heads: `OUT=networks MEASURED=figures python - < this file`."""

import json
import os
from pathlib import Path

# What was trained for each kind of heads.
SPENT = {
    "images": ["images"],
    "optimal": ["optimal"],
    "distilled": ["teacher", "distilled"],
    "identity": ["classifier"],
    "posterior": ["classifier"],
}

out, measured = Path(os.environ["OUT"]), Path(os.environ["MEASURED"])


def trained(network: str) -> tuple[float, int]:
    """FLOP and steps of a training."""
    last = json.loads((out / network / "training.json").read_text())["history"][-1]
    return last["flop"], last["step"]


print("| heads | FLOP | steps | clean, % | attacked, % |\n|---|---|---|---|---|")
for name, networks in SPENT.items():
    file = measured / name / "calibration.json"
    if file.is_file():
        flop, steps = zip(*map(trained, networks), strict=True)
        figures = json.loads(file.read_text())["candidates"][0]
        print(f"| `{name}` | {sum(flop):.2g} | {' + '.join(map(str, steps))} "
              f"| {100 * figures['clean']:.1f} | {100 * figures['robust']:.1f} |")  # fmt: skip
