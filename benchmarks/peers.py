"""Attacks of other libraries with the effort of ours, to be timed beside them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from torch import Tensor, nn

from rdc.choices import Norm

Name = Literal["APGD-CE", "APGD-DLR", "APGD-T", "FAB-T", "Square", "standard"]
Library = Literal["pyautoattack", "torchattacks"]
Attack = Callable[[], Tensor]
UNBROKEN = 1e-4
"""Budget within which no image falls."""


@dataclass(frozen=True)
class Work:
    """A network, images (B, C, H, W) that it gets right, and the effort of all attacks."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    norm: Norm
    eps: float
    """budget of "standard"; the others have one so small that no image falls"""
    targets: int
    """classes that targeted attacks aim at"""
    queries: int
    """queries of Square"""
    steps: int = 100
    """steps of APGD and FAB"""

    @property
    def norm_name(self) -> str:
        """The norm as these libraries spell it."""
        return "Linf" if self.norm == "linf" else "L2"


def peers(library: Library, work: Work) -> dict[Name, Attack]:
    """A library's attacks by name, each a function to the attacked images.

    Raises:
        ImportError: the library is not installed.
    """
    attacks = (_pyautoattack if library == "pyautoattack" else _torchattacks)(work)
    return dict(zip(get_args(Name), attacks, strict=True))


def _pyautoattack(work: Work) -> tuple[Attack, ...]:
    module = import_module("pyautoattack")

    def attack(eps: float) -> Any:
        found = module.AutoAttack(work.model, norm=work.norm_name, eps=eps, seed=0)
        found.apgd.n_restarts = found.fab.n_restarts = 1
        for each in (found.apgd, found.apgd_targeted, found.fab):
            each.n_iter = work.steps
        found.apgd_targeted.n_target_classes = found.fab.n_target_classes = work.targets
        found.fab.targeted, found.square.n_queries = True, work.queries
        return found

    def climb(loss: str) -> Attack:
        apgd = attack(UNBROKEN).apgd
        apgd.loss = loss
        return lambda: apgd.perturb(work.images, work.labels)

    def whole() -> Tensor:
        with debuggers_kept():
            found = attack(work.eps)
            return found.run_standard_evaluation(work.images, work.labels, batch_size=500)[0]

    still = attack(UNBROKEN)
    others = (still.apgd_targeted, still.fab, still.square)
    return (
        climb("ce"),
        climb("dlr"),
        *(lambda each=each: each.perturb(work.images, work.labels) for each in others),
        whole,
    )


@contextmanager
def debuggers_kept() -> Iterator[None]:
    """A context in which AutoAttack's checks do not switch debuggers and coverage off."""
    tracing, sys.settrace = sys.settrace, lambda _: None
    try:
        yield
    finally:
        sys.settrace = tracing


def _torchattacks(work: Work) -> tuple[Attack, ...]:
    """Its `AutoAttack` has ten steps only; "standard" is a `MultiAttack` of the four parts."""
    module = import_module("torchattacks")

    def attacks(eps: float) -> list[Any]:
        given: Any = {"norm": work.norm_name, "eps": eps}
        # Both aim at all classes but one.
        targets = {"n_classes": work.targets + 1, "steps": work.steps}
        return [
            module.APGD(work.model, **given, steps=work.steps, loss="ce"),
            module.APGD(work.model, **given, steps=work.steps, loss="dlr"),
            module.APGDT(work.model, **given, **targets),
            module.FAB(work.model, **given, **targets, multi_targeted=True),
            module.Square(work.model, **given, n_queries=work.queries),
        ]

    ce, _, *others = attacks(work.eps)
    every = [*attacks(UNBROKEN), module.MultiAttack([ce, *others])]
    return tuple(lambda each=each: each(work.images, work.labels) for each in every)
