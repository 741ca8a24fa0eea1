"""Cost of one classified image: `python -m benchmarks.cost digits OTHER ...` in turns.

CPU time, so that other programs on the machine count little; parameters beside it.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
import tyro

from benchmarks.timing import medians
from rdc import RobustDiffusionClassifier
from rdc.commands.program import run_program
from rdc.data import load


@dataclass(frozen=True)
class CostConfig:
    """RDC models of digits, each a packaged name, directory or hub id."""

    models: tyro.conf.Positional[tuple[str, ...]]
    images: int = 50
    repeats: int = 3


@torch.no_grad()
def main(config: CostConfig) -> None:
    """Print parameters, and milliseconds per image of the classifier alone and of RDC."""
    torch.set_num_threads(1)
    images = load("digits", "validation").subset(slice(config.images)).images
    models = {name: RobustDiffusionClassifier.from_pretrained(name) for name in config.models}
    calls = {}
    for name, model in models.items():
        calls[name, "classifier"] = partial(model.classifier, images)
        calls[name, "rdc"] = partial(model, images)
    times = medians(calls, config.repeats)
    print(f"{'':<28}{'parameters':>12}{'classifier, ms':>16}{'RDC, ms':>10}")
    for name, model in models.items():
        parameters = sum(weights.numel() for weights in model.parameters())
        alone, whole = (1000 * times[name, part] / len(images) for part in ("classifier", "rdc"))
        print(f"{name:<28}{parameters:>12,}{alone:>16.1f}{whole:>10.1f}")


if __name__ == "__main__":
    sys.exit(run_program(main))
