"""Which attacks a defence has to survive: every gradient worth trying, and attacks without one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from evaluation.attacks.apgd import apgd
from evaluation.attacks.expectation import Expectation
from evaluation.attacks.losses import cross_entropy, margin, targeted_dlr
from evaluation.attacks.square import square
from evaluation.attacks.stadv import stadv
from evaluation.surrogates import surrogates
from rdc.config import require

Attack = Callable[..., Tensor]
"""attack(victim, images, labels, eps=, norm=, seeds=) -> images"""


@dataclass(frozen=True)
class SuiteConfig:
    """`steps` of each APGD, `targets` classes aimed at, `queries` of Square.

    `draws`: 1 attacks the frozen draw, known to the attacker, and judges on it; more are averaged
        in every step, and the images are judged on draws that no attack has seen.
    """

    steps: int = 40
    targets: int = 3
    queries: int = 500
    draws: int = 1

    def __post_init__(self) -> None:
        require(
            self,
            **{
                name: (getattr(self, name) >= 1, "at least 1")
                for name in ("steps", "targets", "queries", "draws")
            },
        )


@dataclass(frozen=True)
class Entry:
    """One attack on one surrogate; `gradients` and `forwards` are its passes per image and draw."""

    surrogate: nn.Module
    attack: Attack
    gradients: int
    forwards: int


def suite(model: nn.Module, norm: str, config: SuiteConfig) -> dict[str, Entry]:
    """The attacks on a defence by name, "gradient/attack".

    APGD on the cross-entropy and on the margin for every surrogate; aimed at classes, and Square,
    for the first. "stadv" has an attack of its own kind in their place.
    """
    found: dict[str, Entry] = {}
    steps = config.steps
    for name, surrogate in surrogates(model).items():
        if norm == "stadv":
            found[f"{name}/stadv"] = Entry(surrogate, partial(stadv, steps=steps), steps, steps)
            continue
        losses: Mapping[str, Callable] = {"ce": cross_entropy, "margin": margin}
        for kind, loss in losses.items():
            attack = partial(apgd, loss=loss, steps=steps)
            found[f"{name}/apgd-{kind}"] = Entry(surrogate, attack, steps + 1, 2)
    if norm != "stadv":
        aimed = partial(apgd, loss=targeted_dlr, targets=config.targets, steps=steps)
        found["exact/apgd-t"] = Entry(model, aimed, config.targets * (steps + 1), 2)
        found["square"] = Entry(model, partial(square, queries=config.queries), 0, config.queries)
    return found


def run(
    entry: Entry,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str,
    draws: int,
    chunk: int,
    seeds: list[int],
) -> Tensor:
    """The attacked images (B, C, H, W) of one entry."""
    victim = Expectation(entry.surrogate, draws=draws, chunk=chunk)
    options = {} if norm == "stadv" else {"norm": norm}
    return entry.attack(victim, images, labels, eps=eps, seeds=seeds, **options)
