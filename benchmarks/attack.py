"""Speed of attacks on means over the draws of a random defense: `python -m benchmarks.attack`.

A step of PGD on the mean of the margin over several draws, two ways in turns and on the same draws:
images and draws folded into one batch (`evaluation.attacks.eot`), and a loop with a forward
and a backward pass for each draw, as the common attack libraries have it. CPU time; the ratio is of
medians. Both ways must come to the same gradient.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from purification import DiffusionPurifier, PurifierConfig
from rdc import (
    Defense,
    Denoiser,
    DenoiserConfig,
    ImageClassifier,
    ImageClassifierConfig,
    RobustDiffusionClassifier,
    UNetConfig,
)
from rdc.commands.program import run_program
from rdc.data import load
from rdc.noise import using_draws
from rdc.norms import project, steepest
from rdc.runs.atomic import write_json
from rdc.runs.provenance import provenance

EPS = 0.1


@dataclass(frozen=True)
class AttackConfig:
    """Numbers of `images` attacked at once and of `draws` that each step averages."""

    images: tuple[int, ...] = (1, 8)
    draws: int = 16
    steps: int = 1
    repeats: int = 3
    max_rows: int = 256
    """rows that the folded way puts through the model at once"""
    json: Path | None = None
    """write the numbers and where they come from to this file"""


def main(config: AttackConfig) -> None:
    """Print images x steps x draws per second of CPU time, and their ratio."""
    torch.set_num_threads(1)
    data = load("digits", "test").subset(slice(max(config.images)))
    print(f"{config.draws} draws; images x steps x draws per second of CPU time")
    print(f"{'':<30}{'images':>7}{'loop':>10}{'folded':>10}{'ratio':>8}")
    rows = []
    for name, model in defenses().items():
        for count in config.images:
            images, labels = data.images[:count], data.labels[:count]
            if name == LARGE:
                images = enlarged(images)
            row = {"defense": name, "images": count, **compare(model, images, labels, config)}
            rows.append(row)
            print(
                f"{name:<30}{count:>7}{row['loop']:>10.1f}{row['folded']:>10.1f}"
                f"{row['folded'] / row['loop']:>7.2f}x",
                flush=True,
            )
    if config.json is not None:
        record = {"config": asdict(config), **provenance(data), "results": rows}
        write_json(config.json, record)
        print(f"wrote {config.json}")


LARGE = "32x32, DiffPure and a CNN"


def defenses() -> dict[str, nn.Module]:
    """Two of digits, trained, and one of a size of pictures whose weights are random."""
    ten = PurifierConfig("sde", steps=10)
    rdc = RobustDiffusionClassifier.from_pretrained("digits", second_order="central_difference")
    cnn = ImageClassifier.from_pretrained("digits-cnn")
    digits = Defense(DiffusionPurifier(Denoiser.from_pretrained("digits"), ten), cnn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNetConfig(image_size=32, width=16, blocks_per_level=1)
        denoiser = Denoiser(DenoiserConfig(network))
        classifier = ImageClassifier(ImageClassifierConfig("cnn-16", 32, 3, 10))
    large = Defense(DiffusionPurifier(denoiser, ten), classifier)
    found = {"digits, RDC": rdc, "digits, DiffPure and a CNN": digits, LARGE: large}
    return {name: model.eval().requires_grad_(False) for name, model in found.items()}


def enlarged(images: Tensor) -> Tensor:
    return nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1).contiguous()


def compare(
    model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig
) -> dict[str, float]:
    """Images x steps x draws per second, by way."""
    seeds = list(range(len(images)))
    victim = Expectation(model, draws=config.draws, max_rows=config.max_rows)

    def folded(points: Tensor) -> Tensor:
        return victim.gradient(points, labels, seeds=seeds)[1]

    def loop(points: Tensor) -> Tensor:
        total = torch.zeros_like(points)
        for draw in range(config.draws):
            leaf = points.clone().requires_grad_()
            with using_draws(numbers(seeds, draw)):
                (found,) = torch.autograd.grad(margin(model(leaf), labels).sum(), leaf)
            total += found / config.draws
        return total

    ways: dict[str, Callable[[Tensor], Tensor]] = {"loop": loop, "folded": folded}
    one, other = (way(images) for way in ways.values())  # a first time, to warm up
    error = ((one - other).norm() / one.norm()).item()
    if error > 0.01:  # rounding may move a state across the kinks of a ReLU
        raise RuntimeError(
            f"{error:.1%} between the gradients of the two ways: not the same attack"
        )
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.repeats):
        for name, way in ways.items():
            times[name].append(seconds(way, images, config.steps))
    work = len(images) * config.steps * config.draws
    return {name: work / statistics.median(taken) for name, taken in times.items()}


def numbers(seeds: list[int], draw: int) -> list[int]:
    """The copies that `Expectation` takes for the images' draw of this number."""
    return [(seed << 32) + draw + 1 for seed in seeds]


def seconds(gradient: Callable[[Tensor], Tensor], images: Tensor, steps: int) -> float:
    started = time.process_time()
    points = images
    for _ in range(steps):
        direction = steepest(gradient(points), "linf")
        points = project(points + EPS / steps * direction, images, EPS, "linf")
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(run_program(main))
