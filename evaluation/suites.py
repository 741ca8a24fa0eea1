"""Suites of attacks on a defense: through every useful gradient, and without one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from evaluation.attacks.apgd import apgd
from evaluation.attacks.corruptions import CORRUPTIONS, Corruption, corrupt
from evaluation.attacks.diffhammer import LOSSES, diffhammer
from evaluation.attacks.ensembles import (
    Attack,
    Attacked,
    standard,
    standard_attacks,
    stochastic,
    stochastic_attacks,
)
from evaluation.attacks.eot import Expectation
from evaluation.attacks.grid import OnGrid, inside
from evaluation.attacks.lagrange import MULTIPLIERS, lagrange
from evaluation.attacks.losses import cross_entropy, margin, targeted_dlr
from evaluation.attacks.low_frequency import low_frequency
from evaluation.attacks.random_search import random_search
from evaluation.attacks.square import square
from evaluation.attacks.stadv import stadv
from evaluation.gradient_modes import noises, surrogates
from evaluation.results.records import Record
from rdc import Defense, LikelihoodMaximizer
from rdc.config import require

Kind = Literal["adaptive", "standard", "stochastic"]
Threat = Literal["linf", "l2", "stadv", "corruption"]

MEAN = "mean/"
"""Prefix of attacks on means over draws; the others attack the frozen draw."""
TRANSFER = "transfer/"
"""Prefix of attacks made on another model."""


@dataclass(frozen=True)
class Sizes:
    """Effort of each attack of a suite; see `SuiteConfig`."""

    steps: int
    targets: int
    queries: int
    eot_samples: int


SIZES: dict[Kind, Sizes] = {
    "adaptive": Sizes(steps=40, targets=3, queries=500, eot_samples=1),
    "standard": Sizes(steps=100, targets=9, queries=5000, eot_samples=1),
    "stochastic": Sizes(steps=100, targets=9, queries=5000, eot_samples=20),
}


@dataclass(frozen=True)
class SuiteConfig:
    """`steps` of each gradient attack, `targets` classes aimed at, `queries` of Square, a tenth of
    them for random search.

    `eot_samples`: with 1, attacks know the frozen draw and are judged on it. With more they also
        attack means over so many draws, and are judged on draws that no attack has seen as well. A
        defense that draws nothing has one.
    Without a number: 40, 3, 500 and 1 for "adaptive", AutoAttack's 100, 9, 5000 and 1 for
        "standard", the same with 20 draws for "stochastic".
    `only`: patterns of the attacks' names, such as "*/apgd-margin", for a cheaper suite; without
        one all attacks run.
    `every_attack`: every attack tries every image and searches for the largest margin. Without it
        an image is done once it is wrong, and later attacks leave it out (see `Entry.won`).
    `round`: attacks search images of 8 bits alone, whose pixels are multiples of 1/255.
    """

    steps: int | None = None
    targets: int | None = None
    queries: int | None = None
    eot_samples: int | None = None
    only: tuple[str, ...] = ()
    every_attack: bool = False
    round: bool = False

    def __post_init__(self) -> None:
        given = self._given()
        require(self, **{name: (value >= 1, "at least 1") for name, value in given.items()})

    def _given(self) -> dict[str, int]:
        numbers = {field.name: getattr(self, field.name) for field in fields(Sizes)}
        return {name: value for name, value in numbers.items() if value is not None}

    def sizes(self, attack: Kind) -> Sizes:
        """All numbers, those that were not given from `SIZES`."""
        return replace(SIZES[attack], **self._given())


@dataclass(frozen=True)
class Entry:
    """One attack on one surrogate.

    `gradients` and `forwards`: the most passes that it needs per image and draw.
    `draws`: 1 for an attack on the frozen draw, more for one on means over so many draws.
    `stages`: names in the records of an ensemble, which gives the most harmful images after each.
    `judges`: whether answers of the surrogate are those of the defense, so that the attack may stop
        at a wrong one.
    `adversarial`: whether it searches for mistakes; corruptions do not, and are given all images.
    """

    surrogate: nn.Module
    attack: Callable[..., Tensor | Attacked]
    gradients: int
    forwards: int
    draws: int = 1
    stages: tuple[str, ...] = ()
    judges: bool = True
    adversarial: bool = True

    def won(self, record: Record) -> bool:
        """Whether the image of a record leaves this attack nothing to win.

        On the frozen draw a wrong answer is final; on means, wrong answers of all judging draws.
        """
        if not self.adversarial:
            return False
        return not record.right if self.draws == 1 else not record.share


def broken(entry: Entry, before: Iterable[Record]) -> dict[int, Record]:
    """By image, the record that leaves an attack nothing to win, the first of those in `before`.

    `before`: records of the same images under attacks that came before, of this budget or smaller
    ones. The attack need not try these images: their worst case under its protocol is known.
    """
    found: dict[int, Record] = {}
    for record in before:
        if record.image not in found and entry.won(record):
            found[record.image] = record
    return found


def suite(
    model: nn.Module,
    norm: Threat,
    sizes: Sizes,
    *,
    attack: Kind = "adaptive",
    transfer: nn.Module | Mapping[str, nn.Module] | None = None,
    only: tuple[str, ...] = (),
) -> dict[str, Entry]:
    """The attacks on a defense by name; those whose names fit a pattern of `only`, if it has some.

    "adaptive": "gradient/attack" for APGD on the margin and on the cross-entropy through every
    surrogate, for APGD aimed at classes and steps of low frequency through the exact gradient, and
    for the Lagrange attack where likelihood is maximized; "square" and "random", without gradients;
    and "transfer/...", made on the model `transfer`, or on several by name. "stadv" has an attack
    of its own kind in their place. With several draws, the ones called "mean/..." attack means over
    draws, wherever something draws, "mean/diffhammer" those of a purifier.
    "standard": AutoAttack's ensemble on the frozen draw, by its stages; a "+" says that what came
    before counts. "stochastic": the same, and the ensemble for random defenses.
    The threat "corruption" has all corruptions in place of attacks, of strength 1 to 5.

    The order is that of the cascade: gradients before black boxes, which would otherwise hide that
    gradients find nothing; then cheap ones first.
    """
    if norm == "corruption":
        return corruptions(model)
    found = all_attacks(model, norm, sizes, attack, transfer)
    kept = {
        name: entry
        for name, entry in found.items()
        if not only or any(fnmatch(name, pattern) for pattern in only)
    }
    if not kept:
        raise ValueError(f"--suite.only {only}: fits none of the attacks {list(found)}")
    return kept


def all_attacks(
    model: nn.Module,
    norm: Threat,
    sizes: Sizes,
    attack: Kind,
    transfer: nn.Module | Mapping[str, nn.Module] | None,
) -> dict[str, Entry]:
    """All attacks of a suite."""
    if attack == "adaptive":
        known = adaptive(model, norm, sizes)
        means = {
            MEAN + name: replace(entry, draws=sizes.eot_samples)
            for name, entry in known.items()
            if sizes.eot_samples > 1 and noises(entry.surrogate)
        }
        means |= hammered(model, norm, sizes)
        sources = {"": transfer} if isinstance(transfer, nn.Module) else transfer or {}
        moved = {
            name: entry
            for source, other in sources.items()
            for name, entry in transferred(other, norm, sizes, source).items()
        }
        found = {**known, **means, **moved}
        return dict(sorted(found.items(), key=lambda item: black_box(item[0])))
    if norm == "stadv":
        raise ValueError(f"--attack {attack}: made for linf and l2; stadv has --attack adaptive")
    if attack == "standard" and sizes.eot_samples > 1:
        raise ValueError(
            f"--suite.eot-samples {sizes.eot_samples}: AutoAttack would judge a random defense by "
            "single draws; use --attack stochastic, or 1, the frozen draw"
        )
    if attack == "stochastic" and sizes.eot_samples == 1:
        raise ValueError(
            "--attack stochastic: needs a defense that draws, and --suite.eot-samples of at least "
            "2; for others use --attack standard"
        )
    return ensembles(model, sizes, attack)


def adaptive(model: nn.Module, norm: Threat, sizes: Sizes) -> dict[str, Entry]:
    """Attacks on the frozen draw."""
    steps, trials = sizes.steps, max(1, sizes.queries // 10)
    found: dict[str, Entry] = {}
    through = surrogates(model)
    if norm == "stadv":
        attacks: dict[str, Callable] = {"stadv": partial(displaced, steps=steps)}
    else:
        losses = {"margin": margin, "ce": cross_entropy}
        attacks = {f"apgd-{k}": partial(apgd, loss=loss, steps=steps) for k, loss in losses.items()}
    for kind, attack in attacks.items():
        for name, surrogate in through.items():
            judges = name != "classifier"
            found[f"{name}/{kind}"] = Entry(surrogate, attack, steps + 1, 2, judges=judges)
    if norm == "stadv":
        return found
    aimed = partial(apgd, loss=targeted_dlr, targets=sizes.targets, steps=steps)
    return {
        **found,
        "exact/apgd-t": Entry(model, aimed, sizes.targets * (steps + 1), sizes.targets + 2),
        "exact/low-frequency": Entry(model, partial(coarse, steps=steps), steps, 1),
        **lagrange_attacks(model, steps),
        "square": Entry(model, partial(square, queries=sizes.queries), 0, sizes.queries + 2),
        "random": Entry(model, partial(random_search, trials=trials), 0, trials + 1),
    }


def hammered(model: nn.Module, norm: Threat, sizes: Sizes) -> dict[str, Entry]:
    """DiffHammer on the draws of a purifier; nothing for other defenses."""
    draws = sizes.eot_samples
    if norm == "stadv" or draws == 1 or not isinstance(model, Defense) or model.copies > 1:
        return {}
    if not noises(model.purifier):
        return {}
    runs = len(LOSSES) * (sizes.steps + 1)
    attack = partial(diffhammer, steps=sizes.steps)
    # Per step a call for each draw and one gradient, here shared out among the draws.
    entry = Entry(model, attack, -(-runs // draws), runs + 4, draws)
    return {MEAN + "diffhammer": entry}


def corruptions(model: nn.Module) -> dict[str, Entry]:
    """Common corruptions, which ask no model."""
    return {
        kind: Entry(model, partial(corrupted, kind=kind), 0, 0, adversarial=False)
        for kind in CORRUPTIONS
    }


def corrupted(
    victim: Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    kind: Corruption,
    eps: float,
    seeds: list[int],
) -> Tensor:
    """`corrupt` as an attack whose budget is the strength."""
    return corrupt(images, kind=kind, strength=eps, seeds=seeds)  # type: ignore[arg-type]


def lagrange_attacks(model: nn.Module, steps: int) -> dict[str, Entry]:
    """The Lagrange attack on likelihood maximization; nothing for other defenses."""
    if not isinstance(model, Defense) or not isinstance(model.purifier, LikelihoodMaximizer):
        return {}
    if not model.purifier.config.steps:
        return {}
    attack = partial(lagrange, surrogate=model.classifier, penalty=model.purifier.loss, steps=steps)
    runs = len(MULTIPLIERS)
    return {"classifier/lagrange": Entry(model, attack, runs * steps, runs * (steps + 2))}


def coarse(victim: Expectation, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """`low_frequency` on blocks of an eighth of the image's side, at least two pixels."""
    side = min(images.shape[2:])
    block = min(max(2, side // 8), side)
    return low_frequency(victim, images, labels, block=block, **options)


def displaced(
    victim: Expectation, images: Tensor, labels: Tensor, *, eps: float, steps: int, **options: Any
) -> Tensor:
    """`stadv` with steps that also reach the budget where they are few."""
    step_size = max(0.01, 2.5 * eps / steps)
    return stadv(victim, images, labels, eps=eps, steps=steps, step_size=step_size, **options)


def transferred(model: nn.Module, norm: Threat, sizes: Sizes, source: str = "") -> dict[str, Entry]:
    """Attacks made on another model, such as a purifier of the same family, named `source`.

    Where that draws, and with several draws, also on means over them.
    """
    steps, name = sizes.steps, TRANSFER + (f"{source}/" if source else "")
    if norm == "stadv":
        entry = Entry(model, partial(displaced, steps=steps), steps, 2, judges=False)
        return {name + "stadv": entry}
    entry = Entry(model, partial(apgd, loss=margin, steps=steps), steps + 1, 2, judges=False)
    found = {name + "apgd-margin": entry}
    if sizes.eot_samples > 1 and noises(model):
        found[MEAN + name + "apgd-margin"] = replace(entry, draws=sizes.eot_samples)
    return found


def ensembles(model: nn.Module, sizes: Sizes, attack: Kind) -> dict[str, Entry]:
    """AutoAttack on the frozen draw, and for "stochastic" the ensemble on means over draws."""
    steps, targets, queries = sizes.steps, sizes.targets, sizes.queries
    options = {"steps": steps, "targets": targets, "queries": queries}
    aimed = targets * (steps + 1)

    def stages(names: Mapping[str, Attack], prefix: str) -> tuple[str, ...]:
        first, *rest = names
        return (prefix + first, *(f"{prefix}+{name}" for name in rest))

    found = {
        "standard": Entry(
            model, partial(standard, **options), steps + 1 + aimed + targets * steps, queries,
            stages=stages(standard_attacks(**options), ""),
        )
    }  # fmt: skip
    if attack == "stochastic":
        found["stochastic"] = Entry(
            model, partial(stochastic, **options), 2 * (steps + 1) + aimed, queries,
            sizes.eot_samples, stages(stochastic_attacks(**options), MEAN),
        )  # fmt: skip
    return found


def black_box(attack: str) -> bool:
    """Whether an attack, by its name in the records, needs no gradient of the defense."""
    path = attack.removeprefix(MEAN)
    return path.startswith(TRANSFER) or path.removeprefix("+") in ("square", "random")


def run(
    entry: Entry,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Threat,
    max_rows: int,
    seeds: list[int],
    stop_when_wrong: bool = False,
    round: bool = False,
) -> list[Tensor]:
    """The attacked images (B, C, H, W) of one entry: after each of its stages, if it has some.

    `stop_when_wrong`: see `Expectation`; `round`: the images have 8 bits.
    """
    kind = OnGrid if round else Expectation
    victim = kind(
        entry.surrogate, draws=entry.draws, max_rows=max_rows,
        stop_when_wrong=stop_when_wrong and entry.judges,
    )  # fmt: skip
    options = {"norm": norm} if norm in ("linf", "l2") else {}
    found = entry.attack(victim, images, labels, eps=eps, seeds=seeds, **options)
    stages = list(found.stages.values()) if isinstance(found, Attacked) else [found]
    return [inside(stage, images, eps, norm) for stage in stages] if round else stages
