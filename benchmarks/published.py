"""RDC here against the published algorithm, on the same weights: `python -m benchmarks.published`.

The published one is `benchmarks.published_rdc`. The gain has three parts, which are kept apart:

    kernel      the same math on the same network; both must give the same logits and gradients
    estimator   fewer noise levels; how many decisions stay the same is printed beside it
    model       a multi-head network on the same trunk, for the same levels

Utilization is the operations of a call, by PyTorch's own count, per second, relative to a large
matrix product in the same run. On a CPU times are CPU times of one thread.
"""

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.published_rdc import Published
from benchmarks.timing import medians
from evaluation.attacks.losses import margin
from rdc import Denoiser, DenoiserConfig, RDCConfig, RobustDiffusionClassifier, UNetConfig
from rdc.classifier_config import ClassifierConfig, MaximizationConfig
from rdc.commands.program import run_program
from rdc.data import load
from rdc.runs.atomic import write_json
from rdc.runs.device import default_device
from training.flop import FlopCounter

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PublishedConfig:
    """Networks and sizes; the defaults are small enough for one core."""

    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            conditioning="label", width=16, width_multipliers=(1, 2), blocks_per_level=1,
            attention_resolutions=(),
        )
    )  # fmt: skip
    """label-conditional, with random weights"""
    model: str | None = None
    """a trained label-conditional denoiser in its place: packaged name, directory or hub id"""
    multihead: str | None = None
    """a trained multi-head denoiser; without it one of random weights on the same trunk"""
    data: str | None = None
    """data set whose test images are taken; without it, random ones"""
    levels: int = 125
    """levels of the published grid"""
    few: int = 16
    """noise levels of the cheaper estimator"""
    steps: int = 5
    """steps of the maximization"""
    images: int = 4
    """images in one call of ours; the published code takes them one by one"""
    decisions: int = 16
    """images on which the decisions are compared"""
    repeats: int = 3
    precision: Literal["no", "bf16", "fp16"] = "no"
    """precision of all networks in the timed calls; parity is tested in float64"""
    compile: bool = False
    """compile our networks with torch.compile"""
    json: Path | None = None


Calls = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
"""images -> logits, and images and labels -> the gradient that a step of an attack needs"""
PUBLISHED = "published"
CALLS = ("predict", "attack")


@dataclass
class Row:
    """A contestant's images per second, operations per image, share of the peak; by call."""

    name: str
    speed: dict[str, float]
    operations: dict[str, int]
    utilization: dict[str, float]
    gains: dict[str, float] | None = None
    """over the contestant before it"""
    agreement: float | None = None
    """share of the decisions that are those of the contestant before it"""


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    point = images.detach().requires_grad_()
    return torch.autograd.grad(margin(model(point), labels).sum(), point)[0]


class Benchmark:
    """All contestants on one device, with the same images and draws."""

    def __init__(self, config: PublishedConfig) -> None:
        self.config = config
        self.device = default_device()
        torch.manual_seed(0)
        self.conditional = network(config.model, config.network).to(self.device)
        if self.conditional.config.network.conditioning != "label":
            raise ValueError(f"--model {config.model} is not label-conditional: give one that is")
        heads = replace(self.conditional.config.network, conditioning="multihead")
        self.multihead = network(config.multihead, heads).to(self.device)
        self.plain = copy.deepcopy(self.conditional)  # which stays as it is when ours is compiled
        self.images, self.labels = self._images()

    def _images(self) -> tuple[Tensor, Tensor]:
        count = max(self.config.images, self.config.decisions)
        if self.config.data is None:
            images = torch.rand(count, *self.conditional.image_shape)
            labels = torch.arange(count) % self.conditional.num_classes
        else:
            data = load(self.config.data, "test", shape=self.conditional.image_shape)
            images, labels = data.images[:count], data.labels[:count]
        return images.to(self.device), labels.to(self.device)

    def settings(self, levels: int | None = None) -> RDCConfig:
        """The published maximization and weighting; `levels` at quantiles, or the published grid.

        The published code averages over the values of an image, where we sum.
        """
        grid = ClassifierConfig.released(self.config.levels)
        grid = replace(grid, temperature=float(math.prod(self.conditional.image_shape)))
        if levels is not None:
            grid = replace(grid, levels=levels, spacing="lognormal")
        return RDCConfig(grid, replace(MaximizationConfig.released(), steps=self.config.steps))

    def ours(self, denoiser: Denoiser, settings: RDCConfig, **options: Any):
        return RobustDiffusionClassifier(denoiser, settings, **{"gradient": "bpda", **options})

    def published(self, denoiser: Denoiser, like: Tensor) -> Published:
        """The published computation on the draws of our own modules."""
        ours = self.ours(denoiser, self.settings())
        draws, uniform = ours.purifier.noise.normal_and_uniform(like, self.config.steps)
        noise = ours.classifier.noise.normal(like, self.config.levels)
        return Published(
            denoiser, levels=self.config.levels, noise=noise[0], draws=draws[0],
            sigmas=0.4 + 0.2 * uniform[0],
        )  # fmt: skip

    def check_parity(self) -> float:
        """The largest difference of logits and gradients in float64, relative; it must be tiny.

        On images of little contrast, because the published maximization clips only at its end.
        """
        exact = copy.deepcopy(self.conditional).double()
        images, labels = 0.35 + 0.3 * self.images[:1].double(), self.labels[:1]
        theirs, ours = self.published(exact, images), self.ours(exact, self.settings())
        pairs = [
            (theirs.predict(images), predict(ours, images)),
            (theirs.attack(images, labels), attack(ours, images, labels)),
        ]
        worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        if not worst < 1e-4:
            raise AssertionError(f"the two algorithms differ by {worst:.2g}, relative")
        return worst

    def contestants(self) -> dict[str, Calls]:
        """Timed functions by name; the gain of each over the one before is one kind of gain."""
        few = self.settings(self.config.few)
        models = {
            "same math": self.ours(self.conditional, self.settings()),
            "fewer levels": self.ours(self.conditional, few),
            "multi-head": self.ours(self.multihead, few),
            "multi-head, exact gradient": self.ours(
                self.multihead, few, gradient="exact", second_order="central_difference"
            ),
        }
        theirs = self.published(self.plain, self.images)
        return {PUBLISHED: (theirs.predict, theirs.attack)} | {
            name: (partial(predict, model), partial(attack, model))
            for name, model in models.items()
        }

    def seconds(self, function: Callable[[], object]) -> float:
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        return medians({"": function}, self.config.repeats, clock=clock)[""]

    def peak(self) -> float:
        """Operations per second of a large matrix product in the precision of the networks."""
        side = 8192 if self.device.type == "cuda" else 1024
        a = torch.randn(side, side, device=self.device, dtype=DTYPES[self.config.precision])
        return 2 * side**3 / self.seconds(lambda: a @ a)

    def run(self) -> list[Row]:
        """A row for every contestant."""
        contestants, peak = self.contestants(), self.peak()
        dtype = DTYPES[self.config.precision]
        with torch.autocast(self.device.type, dtype, enabled=self.config.precision != "no"):
            # The counter does not see what is compiled.
            counted = {name: self._operations(calls) for name, calls in contestants.items()}
            if self.config.compile:
                self.conditional.compile()
                self.multihead.compile()
            rows = [
                self._row(name, calls, counted[name], peak)
                for name, calls in tqdm(contestants.items(), leave=False)
            ]
            rows[2].agreement = self._agreement(contestants)
        for before, row in pairwise(rows):
            row.gains = {call: row.speed[call] / before.speed[call] for call in CALLS}
        return rows

    def _calls(self, calls: Calls, size: int) -> dict[str, Callable[[], Tensor]]:
        images, labels = self.images[:size], self.labels[:size]
        return {"predict": lambda: calls[0](images), "attack": lambda: calls[1](images, labels)}

    def _operations(self, calls: Calls) -> dict[str, int]:
        """Floating-point operations per image."""
        found = {}
        for name, call in self._calls(calls, 1).items():
            with FlopCounter() as counter:
                call()
            found[name] = counter.total
        return found

    def _row(self, name: str, calls: Calls, operations: dict[str, int], peak: float) -> Row:
        size = 1 if name == PUBLISHED else self.config.images
        speed = {what: size / self.seconds(call) for what, call in self._calls(calls, size).items()}
        utilization = {what: speed[what] * operations[what] / peak for what in CALLS}
        return Row(name, speed, operations, utilization)

    def _agreement(self, contestants: dict[str, Calls]) -> float:
        """Share of the images on which fewer levels decide as the published grid does."""
        images = self.images[: self.config.decisions].split(self.config.images)
        grid, few = (
            torch.cat([contestants[name][0](part).argmax(1) for part in images])
            for name in ("same math", "fewer levels")
        )
        return (grid == few).double().mean().item()


def network(model: str | None, config: UNetConfig) -> Denoiser:
    """A trained denoiser, or one with random weights, also where training starts from zeros."""
    if model is not None:
        return Denoiser.from_pretrained(model)
    denoiser = Denoiser(DenoiserConfig(config)).eval().requires_grad_(False)
    for weights in denoiser.parameters():
        if weights.ndim > 1 and not weights.any():
            weights.normal_(0, weights[0].numel() ** -0.5)
    return denoiser


def table(rows: list[Row]) -> str:
    """Images per second, the gain over the row above, and utilization, for both calls."""
    lines = [
        f"{'':<28}" + "".join(f"{call + ', images/s':>20}{'gain':>8}{'util.':>8}" for call in CALLS)
    ]
    for row in rows:
        cells = ""
        for call in CALLS:
            gain = f"{row.gains[call]:.2f}x" if row.gains else ""
            cells += f"{row.speed[call]:>20.3g}{gain:>8}{100 * row.utilization[call]:>7.1f}%"
        lines.append(f"{row.name:<28}{cells}")
    return "\n".join(lines)


def main(config: PublishedConfig) -> None:
    """Assert parity, time everything, print the table."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    benchmark = Benchmark(config)
    print(f"largest relative difference from the published code: {benchmark.check_parity():.1e}")
    rows = benchmark.run()
    print(table(rows))
    print(
        f"fewer levels: {config.few} in place of {config.levels}, the same decision on "
        f"{100 * (rows[2].agreement or 0):.1f} % of {config.decisions} images"
    )
    if config.json is not None:
        write_json(config.json, {"config": asdict(config), "rows": [asdict(row) for row in rows]})
        print(f"wrote {config.json}")


if __name__ == "__main__":
    sys.exit(run_program(main))
