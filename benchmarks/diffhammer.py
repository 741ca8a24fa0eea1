"""DiffHammer beside APGD on means over draws, at similar cost: `python -m benchmarks.diffhammer`.

Both attack the same random defenses, of digits by default. Costs are counted as they occur, in
calls of the purifier per image; a gradient is 3 calls, 1 forward and 2 backward. A step of an
attack on means takes a gradient for each draw, one of DiffHammer a call for each draw and one
gradient, in up to three runs. Its number of steps is chosen for about the same cost; the table has
the calls that each attack made. Accuracies are those of draws that neither has seen: their mean,
and the share of images that are right under all of them (worst of N).
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from evaluation.attacks.apgd import apgd
from evaluation.attacks.diffhammer import LOSSES, diffhammer
from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from evaluation.attacks.rng import spawn
from evaluation.defenses import build
from evaluation.eps import Budget
from evaluation.sweep_config import Name, SweepConfig
from rdc.commands.program import run_program
from rdc.data import load

JUDGES = 2**31 + 7
"""Path of the draws that judge."""


@dataclass(frozen=True)
class HammerConfig:
    """Defenses of the sweep by name, their models as in `SweepConfig`, and the effort."""

    defenses: tuple[Name, ...] = ("diffpure", "gdmp", "maximization")
    data: str = "digits"
    model: str = "digits"
    classifier: str = "digits-cnn"
    purifier_steps: int | None = None
    images: int = 16
    eps: Budget = 0.1
    draws: int = 10
    """draws per step of the attack"""
    eval_draws: int = 10
    """draws that score an image: N of "worst of N" """
    steps: int = 10
    """steps of APGD on the mean"""
    max_rows: int = 64


def main(config: HammerConfig) -> None:
    """Print one row per defense and attack."""
    torch.set_num_threads(1)
    data = load(config.data, "test").subset(slice(config.images))
    sweep = SweepConfig(
        data=config.data, model=config.model, classifier=config.classifier,
        purifier_steps=config.purifier_steps,
    )  # fmt: skip
    print(
        f"{len(data)} images, linf {config.eps:g}, {config.draws} draws per step; accuracy in % "
        f"over {config.eval_draws} other draws\n"
    )
    heads = f"{'defense':<14} | {'attack':<16} | {'steps':>5} | {'calls':>6} | {'CPU s':>6}"
    print(f"| {heads} | {'mean':>5} | {f'worst of {config.eval_draws}':>11} |")
    print("|" + "|".join("-" * width + ":" for width in (15, 17, 6, 7, 7, 6, 12)) + "|")
    for name in config.defenses:
        model = build(sweep.defense(name), data=config.data).eval().requires_grad_(False)
        calls = counted(model.purifier)  # type: ignore[arg-type]
        for attack, (steps, run) in attacks(config).items():
            calls[0], started = 0, time.process_time()
            victim = Expectation(model, draws=config.draws, max_rows=config.max_rows)
            found = run(victim, data.images, data.labels, eps=config.eps) if run else data.images
            spent, each = time.process_time() - started, calls[0] / len(data)
            mean, worst = accuracies(model, found, data.labels, config)
            print(
                f"| {name:<14} | {attack:<16} | {steps:>5} | {each:>6.0f} | {spent:>6.0f} "
                f"| {100 * mean:>5.1f} | {100 * worst:>11.1f} |",
                flush=True,
            )


def counted(purifier: nn.Module) -> list[int]:
    """A list of one entry, the rows that go through the purifier; with gradient they count 3."""
    count = [0]

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count[0] += len(inputs[0]) * (3 if inputs[0].requires_grad else 1)

    purifier.register_forward_pre_hook(hook)
    return count


def attacks(config: HammerConfig) -> dict[str, tuple[int, Callable[..., Tensor] | None]]:
    """No attack and both by name, each with the steps of a run."""
    # Besides its steps, either attack judges points by further calls.
    cost = (config.steps + 1) * 3 * config.draws
    hammer = max(1, round(cost / (len(LOSSES) * (config.draws + 3)) - 1))
    return {
        "none": (0, None),
        "APGD on the mean": (config.steps, partial(apgd, loss=margin, steps=config.steps)),
        "DiffHammer": (hammer, partial(diffhammer, steps=hammer)),
    }


def accuracies(
    model: nn.Module, images: Tensor, labels: Tensor, config: HammerConfig
) -> tuple[float, float]:
    """Mean over draws that no attack has seen, and the share of images right under all."""
    victim = Expectation(model, draws=config.eval_draws, max_rows=config.max_rows)
    wrong = victim.evaluate(images, labels, seeds=spawn(range(len(images)), JUDGES)).wrong
    return (1 - wrong).mean().item(), (wrong == 0).double().mean().item()


if __name__ == "__main__":
    sys.exit(run_program(main))
