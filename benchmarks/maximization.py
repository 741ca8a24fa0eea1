"""Settings of likelihood maximization, and the attacks that break each.

`python -m benchmarks.maximization` attacks the diffusion classifier of digits behind several
maximizers, three ways each, on the validation split. The denoiser is the exact one of the training
images, so that no training error is in the figures; `--model digits` measures a trained one.
"""

import sys
import time
from dataclasses import dataclass

from evaluation.demo import pgd_evaluation
from evaluation.results.metrics import WORST
from rdc import (
    ClassifierConfig,
    Denoiser,
    MaximizationConfig,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.commands.program import run_program
from rdc.data import load
from rdc.images import to_x

CLASSIFIER = ClassifierConfig(levels=12, sigma_min=0.7, sigma_max=3.0)


def momentum(steps: int, budget: float, low: float, high: float, mu: float) -> MaximizationConfig:
    """`steps` steps of a fifth of the budget."""
    return MaximizationConfig(
        steps=steps, budget=budget, step_size=budget / 5, momentum=mu, sigma_min=low,
        sigma_max=high, draws=2,
    )  # fmt: skip


MAXIMIZERS = {
    "none": MaximizationConfig(steps=0),
    "released (Adam, unbounded)": MaximizationConfig.released(),
    "5 steps, budget .1, sigma .4-.6, momentum 1": momentum(5, 0.1, 0.4, 0.6, 1.0),
    "5 steps, budget .1, sigma .4-.6": momentum(5, 0.1, 0.4, 0.6, 0.0),
    "10 steps, budget .1, sigma .4-.6": momentum(10, 0.1, 0.4, 0.6, 0.0),
    "10 steps, budget .1, sigma .6-1 (packaged)": momentum(10, 0.1, 0.6, 1.0, 0.0),
    "10 steps, budget .1, sigma 1-1.5": momentum(10, 0.1, 1.0, 1.5, 0.0),
    "10 steps, budget .2, sigma .6-1": momentum(10, 0.2, 0.6, 1.0, 0.0),
}


@dataclass(frozen=True)
class MaximizationBenchmarkConfig:
    """Attacks per maximizer: exact gradient, BPDA, and images that fool the classifier alone."""

    model: str = "optimal"
    """"optimal", or a denoiser as `Denoiser.from_pretrained` takes it"""
    images: int = 100
    eps: float = 0.2
    steps: int = 40


def main(config: MaximizationBenchmarkConfig) -> None:
    """Print clean accuracy, the accuracy under each attack, and the worst per image, in %."""
    data = load("digits", "validation").subset(slice(config.images))
    if config.model == "optimal":
        train = load("digits", "train")
        denoiser = OptimalDenoiser(to_x(train.images), train.labels)
    else:
        denoiser = Denoiser.from_pretrained(config.model)
    print(f"{'':<46}{'clean':>7}{'exact':>7}{'bpda':>7}{'unmax.':>7}{'worst':>7}{'seconds':>9}")
    for name, maximization in MAXIMIZERS.items():
        started = time.perf_counter()
        # Double backward, the default: some of these losses are too rugged for differences.
        model = RobustDiffusionClassifier(denoiser, RDCConfig(CLASSIFIER, maximization))
        found = pgd_evaluation(model, data, eps=(config.eps,), steps=config.steps)
        attacks = (*found.runner.entries, WORST)
        accuracies = [found.accuracy("linf", 0.0)]
        accuracies += [found.accuracy("linf", config.eps, attack=attack) for attack in attacks]
        cells = "".join(f"{100 * accuracy.mean:>7.0f}" for accuracy in accuracies)
        print(f"{name:<46}{cells}{time.perf_counter() - started:>9.0f}")


if __name__ == "__main__":
    sys.exit(run_program(main))
