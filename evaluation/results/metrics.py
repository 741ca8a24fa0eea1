"""Accuracies from records: of every attack alone, and per image of the worst of all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, fsum

from evaluation.eps import written
from evaluation.results.protocols import Protocol, applicable
from evaluation.results.records import CLEAN, Record, unique, worst
from evaluation.results.statistics import clopper_pearson

WORST = "worst"
"""Name, among those of attacks, of the worst of all attacks per image."""

Scores = dict[float, dict[str, dict[str, list[float]]]]
"""Scores of the images, in [0, 1], by budget, attack and name of the protocol."""


@dataclass(frozen=True)
class Accuracy:
    """Mean score of `images` images, in [0, 1], and its 95 % Clopper-Pearson interval."""

    mean: float
    low: float
    high: float
    images: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Accuracy":
        """The accuracy of scores in [0, 1]; an image right in some draws counts for that part."""
        count, total = len(scores), fsum(scores)
        low = clopper_pearson(floor(total), count)[0]
        high = clopper_pearson(ceil(total), count)[1]
        return cls(total / count, low, high, count)

    def __str__(self) -> str:
        """The accuracy in percent, with its interval: 61.0 [51, 71]."""
        return f"{100 * self.mean:.1f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


Accuracies = dict[float, dict[str, dict[str, Accuracy]]]
"""Accuracies by budget (0: without attack), attack and name of the protocol."""


def scores(records: Iterable[Record]) -> Scores:
    """Scores of the images under every attack and protocol, in the order of the images' numbers.

    Budget 0 has "none"; every other budget has its attacks, in the order of the records, and
    "worst": per image the least score over them, over the attacks of smaller budgets, and over the
    image as it is, all of which are within the budget. That the least is taken over means of a few
    draws makes it too low rather than too high.

    Raises:
        ValueError: an attack lacks records of some images.
    """
    records = unique(records)
    protocols, by_attack = applicable(records), grouped(records)
    found: Scores = {}
    for (eps, attack), part in by_attack.items():
        found.setdefault(eps, {})[attack] = {p.name: [*map(p.score, part)] for p in protocols}
    for protocol in protocols:
        for eps, least in worst_scores(records, protocol).items():
            found[eps].setdefault(WORST, {})[protocol.name] = least
    return found


def grouped(records: Sequence[Record]) -> dict[tuple[float, str], list[Record]]:
    """Records by budget, ascending, and attack; each with one record of every image, in order."""
    found: dict[tuple[float, str], dict[int, Record]] = {}
    for record in records:
        found.setdefault((record.eps, record.attack), {})[record.image] = record
    clean = found.get((0.0, CLEAN))
    if clean is None:
        raise ValueError(
            "records: none of images as they are; the run has not finished: start it again"
        )
    for (eps, attack), part in found.items():
        if part.keys() != clean.keys():
            raise ValueError(
                f"records: eps {written(eps)}, {attack}: {len(part)} of {len(clean)} images; the "
                "run has not finished: start it again"
            )
    keys = sorted(found, key=lambda key: key[0])
    return {key: [found[key][image] for image in sorted(clean)] for key in keys}


def worst_scores(records: Sequence[Record], protocol: Protocol) -> dict[float, list[float]]:
    """Least score of each image over all records within a budget, by budget."""
    found, least = {}, {}
    for eps in sorted({record.eps for record in records}):
        within = [*least.values(), *(record for record in records if record.eps == eps)]
        least = worst(within, lambda record: -protocol.score(record))
        if eps:
            found[eps] = [*map(protocol.score, least.values())]
    return found


def accuracies(records: Iterable[Record]) -> Accuracies:
    """Accuracies of all `scores`, with 95 % intervals over images."""
    return {
        eps: {
            attack: {protocol: Accuracy.of(values) for protocol, values in by.items()}
            for attack, by in attacks.items()
        }
        for eps, attacks in scores(records).items()
    }


def table(found: Accuracies, norm: str) -> str:
    """A table for the terminal: protocols across, budgets and attacks down."""
    rows = {
        "clean" if attack == CLEAN else f"eps {written(eps)}  {attack}": figures
        for eps, attacks in found.items()
        for attack, figures in attacks.items()
    }
    width = max(map(len, rows)) + 2
    protocols = list(rows["clean"])
    lines = [f"accuracy in % [95 % interval], {norm}"]
    lines += [" " * width + "".join(f"{name:>20}" for name in protocols)]
    lines += [
        f"{label:<{width}}" + "".join(f"{figures[name]!s:>20}" for name in protocols)
        for label, figures in rows.items()
    ]
    return "\n".join(lines)
