"""Ratios to published code, in one run and one table: `make bench`.

CPU time of one thread, the least of some repeats, both sides in turns in one process; above a ratio
of 1 ours is faster. Needs pyautoattack, a development dependency, or torchattacks. The rows are

    attacks     on a packaged CNN, at a budget so small that no image falls: both sides do all their
                steps on all images. "standard" has a budget that breaks images, where leaving them
                out is part of the speed; the note has what is left right.
    mean        a PGD step on the mean over draws, against a loop over the draws
    RDC         against the published algorithm, step by step: the same math, then fewer noise
                levels, then a multi-head network (see `benchmarks.published`)

The last two are of digits and left out with other data.

"network" is the share of our time that the attacked network's passes take, forward and backward:
what no attack of as many passes can save.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.attack import AttackConfig, compare, defenses
from benchmarks.peers import UNBROKEN, Attack, Library, Name, Work, peers
from benchmarks.published import CALLS, Benchmark, PublishedConfig
from evaluation.attacks.apgd import apgd
from evaluation.attacks.ensembles import standard
from evaluation.attacks.fab import fab
from evaluation.attacks.losses import cross_entropy, dlr, targeted_dlr
from evaluation.attacks.square import square
from evaluation.eps import Budget
from rdc.choices import Norm
from rdc.commands.program import run_program
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier


@dataclass(frozen=True)
class RatioConfig:
    """Model, effort and repeats."""

    model: str = "digits-cnn"
    """an image classifier: packaged name, directory or hub id"""
    data: str = "digits"
    """a packaged data set or a folder, whose test images are attacked"""
    linf: Budget = 0.1
    l2: Budget = 0.5
    """budgets of "standard", on [0, 1]"""
    library: Library = "pyautoattack"
    """to compare with; torchattacks needs `pip install --no-deps torchattacks`"""
    only: tuple[Name, ...] = get_args(Name)
    """attacks"""
    images: int = 100
    targets: int = 2
    """classes that targeted attacks aim at"""
    queries: int = 500
    """queries of Square"""
    repeats: int = 5


@dataclass(frozen=True)
class Row:
    """Seconds of theirs and ours for the same work."""

    what: str
    case: str
    theirs: float
    ours: float
    network: float | None = None
    note: str = ""

    def __str__(self) -> str:
        share = "" if self.network is None else f"{self.network:.0%}"
        return (
            f"| {self.what:<20} | {self.case:<26} | {self.theirs:>8.3g} | {self.ours:>8.3g} "
            f"| {self.theirs / self.ours:>5.2f} | {share:>7} | {self.note:<26} |"
        )


def main(config: RatioConfig) -> None:
    """Print the table row by row."""
    torch.set_num_threads(1)
    heads = (
        f"{'what':<20} | {'case':<26} | {'theirs, s':>8} | {'ours, s':>8} | ratio | network "
        f"| {'note':<26}"
    )
    print(f"| {heads} |\n|{'|'.join('-' * width for width in (22, 28, 11, 10, 7, 9, 28))}|")
    rows = attack_rows(config)
    if config.data == "digits":
        rows = chain(rows, mean_rows(config), published_rows(config))
    for row in rows:
        print(row, flush=True)


def attack_rows(config: RatioConfig) -> Iterator[Row]:
    """Attacks against those of the other library."""
    model = Timed(ImageClassifier.from_pretrained(config.model).requires_grad_(False)).eval()
    data = load(config.data, "test").subset(slice(config.images))
    right = model(data.images).argmax(1) == data.labels
    images, labels = data.images[right], data.labels[right]
    budgets: list[tuple[Norm, float]] = [("linf", config.linf), ("l2", config.l2)]
    for norm, eps in budgets:
        effort = {"targets": config.targets, "queries": config.queries}
        work = Work(model, images, labels, norm, eps, **effort)
        their_attacks, our_attacks = peers(config.library, work), ours(work)
        for name in config.only:
            pair = their_attacks[name], our_attacks[name]
            (theirs, mine), found = alternate(pair, config.repeats)
            left = [int((model(attacked).argmax(1) == labels).sum()) for attacked in found]
            note = f"left right: {left[0]}, ours {left[1]}" if name == "standard" else ""
            case = f"{norm}, {len(images)} images"
            yield Row(name, case, theirs, mine, share_of(model, pair[1]), note)


def mean_rows(config: RatioConfig) -> Iterator[Row]:
    """Gradients of means over draws, one by one against folded into rows."""
    settings = AttackConfig(images=(4,), repeats=config.repeats)
    data = load("digits", "test").subset(slice(4))
    for name in ("digits, RDC", "digits, DiffPure and a CNN"):
        speed = compare(defenses()[name], data.images, data.labels, settings)
        case = f"4 images, {settings.draws} draws"
        yield Row(f"mean, {name.removeprefix('digits, ')}"[:20], case, 64 / speed["loop"],
                  64 / speed["folded"])  # fmt: skip


def published_rows(config: RatioConfig) -> Iterator[Row]:
    """RDC against the published algorithm, seconds per image."""
    benchmark = Benchmark(PublishedConfig(repeats=config.repeats, decisions=4))
    for before, after in pairwise(benchmark.run()):
        for call in CALLS:
            yield Row(f"RDC, {call}", after.name, 1 / before.speed[call], 1 / after.speed[call])


def ours(work: Work) -> dict[Name, Attack]:
    """Our way to make the attacks of `peers`, by name."""
    given: Any = (work.model, work.images, work.labels)
    still: Any = {"eps": UNBROKEN, "norm": work.norm}
    steps, queries = {"steps": work.steps}, {"queries": work.queries}
    aimed = {**steps, "targets": work.targets}
    return {
        "APGD-CE": partial(apgd, *given, **still, **steps, loss=cross_entropy),
        "APGD-DLR": partial(apgd, *given, **still, **steps, loss=dlr),
        "APGD-T": partial(apgd, *given, **still, **aimed, loss=targeted_dlr),
        "FAB-T": partial(fab, *given, **still, **aimed),
        "Square": partial(square, *given, **still, **queries),
        "standard": lambda: (
            standard(*given, eps=work.eps, norm=work.norm, **aimed, **queries).images
        ),
    }


class Timed(nn.Module):
    """A network that counts the CPU seconds of its forward and backward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        self.seconds -= time.process_time()
        logits = _Clock.apply(self.network(_Clock.apply(images, self, 1)), self, -1)
        self.seconds += time.process_time()
        return logits


class _Clock(torch.autograd.Function):
    """Identity whose backward pass adds `sign` times the present time to a network's seconds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, timed: Timed, sign: int) -> Tensor:
        ctx.timed, ctx.sign = timed, sign
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.timed.seconds += ctx.sign * time.process_time()
        return gradient, None, None


def share_of(model: Timed, attack: Attack) -> float:
    """The share of an attack's CPU time that passes of the network take."""
    model.seconds, started = 0.0, time.process_time()
    attack()
    return model.seconds / (time.process_time() - started)


def alternate(pair: tuple[Attack, Attack], repeats: int) -> tuple[list[float], list[Tensor]]:
    """Least CPU seconds of both, in turns, and what they found.

    What else the machine does only ever adds time."""
    times: tuple[list[float], list[float]] = ([], [])
    found: list[Tensor] = []
    for _ in range(repeats):
        found = []
        for taken, attack in zip(times, pair, strict=True):
            started = time.process_time()
            with torch.random.fork_rng(devices=[]):
                found.append(attack())
            taken.append(time.process_time() - started)
    return [min(taken) for taken in times], found


if __name__ == "__main__":
    sys.exit(run_program(main))
