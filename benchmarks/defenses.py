"""Cost of one image for every defense: `python -m benchmarks.defenses`.

Parameters of all networks, operations of an answer, and milliseconds of CPU time of one thread for
an answer and for the exact gradient of its margin, with as many images at once as `--images`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from evaluation.attacks.eot import Expectation
from evaluation.defenses import build
from evaluation.sweep_config import DEFENSES, SweepConfig
from rdc.commands.program import run_program
from rdc.data import load
from training.flop import FlopCounter


@dataclass(frozen=True)
class CostConfig:
    """The defenses of `evaluation.sweep`, made of these models."""

    data: str = "digits"
    model: str = "digits"
    """denoiser and RDC: packaged name, directory or hub id, like the next two"""
    classifier: str = "digits-cnn"
    trades: str = "digits-trades"
    purifier_steps: int | None = None
    """steps of each round, in place of the purifiers' own"""
    images: int = 8
    repeats: int = 3


def main(config: CostConfig) -> None:
    """Print one line for each defense."""
    torch.set_num_threads(1)
    sweep = SweepConfig(
        out=Path(), data=config.data, model=config.model, classifier=config.classifier,
        trades=config.trades, purifier_steps=config.purifier_steps,
    )  # fmt: skip
    given = load(config.data, "test").subset(slice(config.images))
    print("| defense | parameters | GFLOP | answer, ms | gradient, ms |\n|---|---|---|---|---|")
    for name in DEFENSES:
        model = build(sweep.defense(name), data=config.data)
        victim = Expectation(model, max_rows=config.images)
        known = {"labels": given.labels, "seeds": list(range(config.images))}
        answer = partial(victim.evaluate, given.images, **known)
        gradient = partial(victim.gradient, given.images, **known)
        with FlopCounter() as counter:
            answer()
        times = " | ".join(f"{milliseconds(each, config):.3g}" for each in (answer, gradient))
        flop = counter.total / config.images / 1e9
        print(f"| {name} | {parameters(model):,} | {flop:.3g} | {times} |")


def parameters(model: nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


def milliseconds(call: Callable[[], object], config: CostConfig) -> float:
    """CPU time per image of the fastest of some calls."""
    times = []
    for _ in range(config.repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return 1000 * min(times) / config.images


if __name__ == "__main__":
    sys.exit(run_program(main))
