"""What the finished records of an evaluation say about its attacks."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from scipy.stats import binom

from evaluation.checks.budgets import SURE, limit
from evaluation.checks.check import Check, Finding, check
from evaluation.checks.context import Threat
from rdc.runs.run_log import Record

MISSED = 0.02
"""Share of images that attacks by gradient may miss and others find."""
SPREAD = 3.0
"""Standard deviations between shares of draws that chance may make."""

Score = Callable[[Record], float]
Scores = Mapping[int, float]
"""by image, in [0, 1]"""


def from_records(
    records: Sequence[Record], *, black_box: Collection[str], norm: Threat
) -> list[Check]:
    """Checks on the records of all budgets; `black_box` names the attacks without gradients.

    Under its frozen draw an image is right or wrong. Where the records have unseen draws as well,
    their share is also looked at, and two shares differ only where chance could not make them.
    """
    return [
        falling(records),
        white_box_wins(records, black_box),
        recorded_inside(records, norm),
    ]


@check("accuracy falls with eps")
def falling(records: Sequence[Record]) -> Finding:
    """No budget leaves more images right than a smaller one, which is part of it.

    Per image the worst of a budget's attacks and of the clean image. Fails where more images are
    right again than fall from one budget to the next (sign test at `SURE`), or where so many are
    right again that the attacks miss more than `MISSED` of all (exact binomial at `SURE`).
    """
    budgets = sorted({record["eps"] for record in records} - {0})
    if len(budgets) < 2:
        return None, f"only one budget, {budgets[0]:g}" if budgets else "no budget"
    passed, again, curves, count = True, 0, [], number(records)
    for score, chance in views(records):
        clean = worst(records, score, eps=0)
        found = [clean, *(lowest([clean, worst(records, score, eps=eps)]) for eps in budgets)]
        for smaller, larger in pairwise(found[1:]):
            rises = [larger[image] - smaller[image] for image in larger]
            rose, fell = sum(rise > 0 for rise in rises), sum(rise < 0 for rise in rises)
            missed = sum(rise > chance for rise in rises)
            fair = bool(binom.sf(rose - 1, rose + fell, 0.5) >= SURE)
            passed = passed and fair and rare(missed, count)
            again = max(again, missed)
        curves.append([fmean(scores.values()) for scores in found])
    steps = ", ".join(
        f"{share:.1%} at {eps:g}" for eps, share in zip([0, *budgets], curves[-1], strict=True)
    )
    detail = (
        f"accuracy {steps}; from one budget to the next at most {again} of {count} images are "
        "right again"
    )
    if not passed:
        detail += (
            "; attacks fail at larger budgets: use more steps, or start where smaller ones end"
        )
    return passed, detail


@check("white box beats black box")
def white_box_wins(records: Sequence[Record], black_box: Collection[str]) -> Finding:
    """What falls to an attack without gradients has fallen to one with them, image by image.

    Fails where images that only the former break are too many for attacks by gradient that miss
    `MISSED` of all images (exact binomial at `SURE`): two of 16, or six of 100, may happen.
    """
    attacks = {record["attack"] for record in records if record["eps"] > 0}
    if not attacks & set(black_box) or not attacks - set(black_box):
        return None, f"needs attacks of both kinds, and has {sorted(attacks)}"
    gradients, counts, count = attacks - set(black_box), {}, number(records)
    for score, chance in views(records):
        clean = worst(records, score, eps=0)
        for eps in {record["eps"] for record in records} - {0}:
            white = lowest([clean, worst(records, score, eps=eps, attacks=gradients)])
            black = worst(records, score, eps=eps, attacks=set(black_box))
            only_black = sum(white[image] - black[image] > chance for image in black)
            counts[eps] = max(only_black, counts.get(eps, 0))
    eps, most = max(sorted(counts.items()), key=lambda item: item[1])
    passed = rare(most, count)
    names = ", ".join(sorted(black_box))
    detail = f"at most {most} of {count} images (eps {eps:g}) fall only to {names}"
    if not passed:
        detail += "; gradients are masked: read the checks of gradients, and find a surrogate"
    return passed, detail


@check("recorded inside the budget")
def recorded_inside(records: Sequence[Record], norm: Threat) -> Finding:
    """No record says that an image was changed by more than its budget."""
    if norm == "stadv":
        return None, "records have no displacements"
    outside = sum(record[norm] > limit(record["eps"]) for record in records)
    detail = f"{outside} of {len(records)} attacked images lie outside their budget in {norm}"
    return not outside, detail + ("; those are no attacks of this budget" if outside else "")


def number(records: Iterable[Record]) -> int:
    """How many images the records are of."""
    return len({record["image"] for record in records})


def views(records: Sequence[Record]) -> list[tuple[Score, float]]:
    """Ways to score a record, and how far apart chance may leave two scores: the answer of the
    frozen draw, which is certain; the share of unseen draws, by `SPREAD` standard deviations.
    """
    found: list[tuple[Score, float]] = [(frozen, 0.0)]
    if draws := len(records[0]["predictions"]):
        found.append((share, SPREAD * (0.5 / draws) ** 0.5))
    return found


def frozen(record: Record) -> float:
    """Whether the frozen draw gives the label."""
    return float(record["frozen"] == record["label"])


def share(record: Record) -> float:
    """The share of unseen draws that give the label."""
    return fmean(answer == record["label"] for answer in record["predictions"])


def worst(
    records: Iterable[Record],
    score: Score,
    *,
    eps: float,
    attacks: Collection[str] | None = None,
) -> dict[int, float]:
    """Per image the least score under these attacks, by default all."""
    by_attack: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        if record["eps"] == eps and (attacks is None or record["attack"] in attacks):
            by_attack[record["attack"]][record["image"]] = score(record)
    return lowest(list(by_attack.values()))


def lowest(scores: Sequence[Scores]) -> dict[int, float]:
    """Per image the least of several scores; an image that one of them lacks counts by the rest."""
    images = sorted({image for of_images in scores for image in of_images})
    return {i: min(of_images[i] for of_images in scores if i in of_images) for i in images}


def rare(count: int, total: int) -> bool:
    """Whether attacks that miss `MISSED` of all images might well miss `count` of `total`."""
    return bool(binom.sf(count - 1, total, MISSED) >= SURE)
