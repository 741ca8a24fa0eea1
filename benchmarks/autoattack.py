"""Our standard ensemble beside AutoAttack itself: robust accuracies, per-image verdicts, seconds.

`python -m benchmarks.autoattack` attacks a deterministic classifier with both, in the same process
and with the same settings. Needs pyautoattack, which is in the development dependencies.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from benchmarks.peers import debuggers_kept
from evaluation.attacks.ensembles import standard
from rdc.choices import Norm
from rdc.commands.program import run_program
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier
from rdc.norms import size


@dataclass(frozen=True)
class AutoAttackConfig:
    """Model, images and budgets."""

    model: str = "digits-cnn"
    """an image classifier: packaged name, directory or hub id"""
    images: int = 500
    """number of images, from the start of the test split"""
    linf: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2)
    l2: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    seed: int = 0


def main(config: AutoAttackConfig) -> None:
    """Print one row per norm and eps."""
    model = ImageClassifier.from_pretrained(config.model).eval().requires_grad_(False)
    data = load("digits", "test").subset(slice(config.images))
    print(f"{config.model}, {len(data)} images; images left right; seconds in brackets")
    heads = ("norm", 5), ("eps", 7), ("AutoAttack", 18), ("ours", 18), ("only ours", 11)
    print("".join(f"{head:>{width}}" for head, width in (*heads, ("only theirs", 13))))
    threats: list[tuple[Norm, tuple[float, ...]]] = [("linf", config.linf), ("l2", config.l2)]
    for norm, budgets in threats:
        for eps in budgets:

            def ours(norm: Norm = norm, eps: float = eps) -> Tensor:
                seeds = range(config.seed, config.seed + len(data))
                return standard(
                    model, data.images, data.labels, eps=eps, norm=norm, seeds=seeds
                ).images

            theirs, slow = timed(partial(reference, model, data, norm, eps, config.seed))
            found, fast = timed(ours)
            right = [
                verdict(model, x, data.images, data.labels, norm, eps) for x in (theirs, found)
            ]
            print(
                f"{norm:>5}{eps:>7g}{f'{right[0].sum()} ({slow:.0f})':>18}"
                f"{f'{right[1].sum()} ({fast:.0f})':>18}{(right[0] & ~right[1]).sum():>11}"
                f"{(right[1] & ~right[0]).sum():>13}",
                flush=True,
            )


def reference(model: nn.Module, data, norm: Norm, eps: float, seed: int) -> Tensor:
    """AutoAttack's adversarial images."""
    attack = AutoAttack(model, norm="Linf" if norm == "linf" else "L2", eps=eps, seed=seed)
    with debuggers_kept(), torch.random.fork_rng(devices=[]):
        return attack.run_standard_evaluation(data.images, data.labels, batch_size=500)[0]


def verdict(
    model: nn.Module, attacked: Tensor, images: Tensor, labels: Tensor, norm: Norm, eps: float
) -> Tensor:
    """Mask (B,) of images that `model` gets right; refuses images outside ball or box."""
    far = size(attacked - images, norm).max()
    if far > eps + 1e-5 or attacked.min() < 0 or attacked.max() > 1:
        raise RuntimeError(f"an attack left the ball of eps={eps} ({far:g}) or the box [0, 1]")
    with torch.no_grad():
        return model(attacked).argmax(1) == labels


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.process_time()
    return function(), time.process_time() - started


if __name__ == "__main__":
    sys.exit(run_program(main))
