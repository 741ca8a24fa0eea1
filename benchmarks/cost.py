"""Cost of one classified image: `python -m benchmarks.cost digits OTHER ...` in turns.

CPU time, so that other programs on the machine count little; parameters beside it.
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
import tyro
from torch import nn

from rdc import RobustDiffusionClassifier
from rdc.commands.program import run_program
from rdc.data import load


@dataclass(frozen=True)
class CostConfig:
    """RDC models of digits, each a packaged name, directory or hub id."""

    models: tyro.conf.Positional[tuple[str, ...]]
    images: int = 50
    repeats: int = 3


def main(config: CostConfig) -> None:
    """Print parameters, and milliseconds per image of the classifier alone and of RDC."""
    torch.set_num_threads(1)
    images = load("digits", "validation").subset(slice(config.images)).images
    models = {name: RobustDiffusionClassifier.from_pretrained(name) for name in config.models}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(config.repeats + 1):
        for name, model in models.items():
            for part, module in (("classifier", model.classifier), ("rdc", model)):
                times.setdefault((name, part), []).append(seconds(module, images))
    print(f"{'':<28}{'parameters':>12}{'classifier, ms':>16}{'RDC, ms':>10}")
    for name, model in models.items():
        parameters = sum(weights.numel() for weights in model.parameters())
        alone, whole = (
            1000 * statistics.median(times[name, part][1:]) / len(images)
            for part in ("classifier", "rdc")
        )
        print(f"{name:<28}{parameters:>12,}{alone:>16.1f}{whole:>10.1f}")


@torch.no_grad()
def seconds(model: nn.Module, images: torch.Tensor) -> float:
    started = time.process_time()
    model(images)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(run_program(main))
