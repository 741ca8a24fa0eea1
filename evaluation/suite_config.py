"""Settings of a suite of attacks: its kind, its threat, and the effort of each attack."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from rdc.config import require

Kind = Literal["adaptive", "standard", "stochastic"]
Threat = Literal["linf", "l2", "stadv", "corruption"]


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
        deterministic defense uses 1.
    Without a number: 40, 3, 500 and 1 for "adaptive", AutoAttack's 100, 9, 5000 and 1 for
        "standard", the same with 20 draws for "stochastic".
    `only`: patterns of the attacks' names, such as "*/apgd-margin", for a cheaper suite; without
        one all attacks run. Corruptions are chosen by name too.
    `every_attack`: every attack tries every image and searches for the largest margin. Without it
        an image is done once it is wrong, and later attacks leave it out.
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
        require(self)  # types, before values are compared
        given = self._given()
        require(self, **{name: (value >= 1, "at least 1") for name, value in given.items()})

    def _given(self) -> dict[str, int]:
        numbers = {field.name: getattr(self, field.name) for field in fields(Sizes)}
        return {name: value for name, value in numbers.items() if value is not None}

    def sizes(self, attack: Kind) -> Sizes:
        """All numbers, those that were not given from `SIZES`."""
        return replace(SIZES[attack], **self._given())
