"""Checks of an evaluation's attacks by its finished records."""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from statistics import fmean

from scipy.special import bdtrc

from evaluation.checks.budgets import SURE, limit
from evaluation.checks.check import Check, Finding, check
from evaluation.eps import written
from evaluation.results.protocols import FRESH, FROZEN, PROTOCOLS
from evaluation.results.records import CLEAN, Record, worst
from evaluation.suite_config import Threat

MISSED = 0.02
"""Share of images that attacks by gradient may miss and others find."""
SPREAD = 3.0
"""Standard deviations between shares of draws that chance may make."""

Score = Callable[[Record], float]


def from_records(
    records: Sequence[Record], *, black_box: Collection[str], norm: Threat
) -> list[Check]:
    """Checks on the records of all budgets; `black_box` names the attacks without gradients.

    Under its frozen draw an image is right or wrong. Where the records have unseen draws as well,
    their share is also looked at, and two shares differ only where chance could not make them.
    None for corruptions, which are no attack.
    """
    if norm == "corruption":
        return []
    return [falling(records), white_box_wins(records, black_box), recorded_inside(records, norm)]


@check("accuracy falls with eps")
def falling(records: Sequence[Record]) -> Finding:
    """No budget leaves more images right than a smaller one, which is part of it.

    Per image the worst of a budget's attacks and of the clean image. Fails where more images are
    right again than fall from one budget to the next (sign test at `SURE`), or where so many are
    right again that the attacks miss more than `MISSED` of all (exact binomial at `SURE`). Nothing
    can be right again where a larger budget leaves out what a smaller one broke.
    """
    if any(r.broken_at is not None and r.broken_at < r.eps for r in records):
        return None, (
            "larger budgets leave out what smaller ones broke; --suite.every-attack asks them all"
        )
    budgets = sorted({record.eps for record in records} - {0.0})
    if len(budgets) < 2:
        return None, f"only one budget, {written(budgets[0])}" if budgets else "no budget"
    passed, again, curves, count = True, 0, [], number(records)
    if rare(count, count):
        return None, f"too few images: attacks that work could miss all {count}"
    for score, chance in views(records):
        found = [least(records, score, {0.0, eps}) for eps in (0.0, *budgets)]
        for smaller, larger in pairwise(found[1:]):
            rises = [larger[image] - smaller[image] for image in larger]
            rose, fell = sum(rise > 0 for rise in rises), sum(rise < 0 for rise in rises)
            missed = sum(rise > chance for rise in rises)
            fair = bool(bdtrc(rose - 1, rose + fell, 0.5) >= SURE)
            passed = passed and fair and rare(missed, count)
            again = max(again, missed)
        curves.append([fmean(scores.values()) for scores in found])
    steps = ", ".join(
        f"{share:.1%} at {written(eps)}"
        for eps, share in zip([0.0, *budgets], curves[-1], strict=True)
    )
    detail = (
        f"accuracy {steps}; from one budget to the next at most {again} of {count} images are "
        "right again"
    )
    remedy = "attacks fail at larger budgets: use more steps, or start where smaller ones end"
    return passed, detail, remedy


@check("white box beats black box")
def white_box_wins(records: Sequence[Record], black_box: Collection[str]) -> Finding:
    """Attacks with gradients break every image that an attack without gradients breaks.

    Fails where images that only the former break are too many for attacks by gradient that miss
    `MISSED` of all images (exact binomial at `SURE`): two of 16, or six of 100, may happen.
    """
    attacks = {record.attack for record in records if record.eps}
    if not attacks & set(black_box) or not attacks - set(black_box):
        return None, f"needs attacks of both kinds, and has {sorted(attacks)}"
    gradients, counts, count = attacks - set(black_box), {}, number(records)
    if rare(count, count):
        return None, f"too few images: attacks that work could miss all {count}"
    for score, chance in views(records):
        for eps in {record.eps for record in records} - {0.0}:
            white = least(records, score, {0.0, eps}, attacks={CLEAN, *gradients})
            black = least(records, score, {eps}, attacks=black_box)
            only_black = sum(white[image] - black[image] > chance for image in black)
            counts[eps] = max(only_black, counts.get(eps, 0))
    eps, most = max(sorted(counts.items()), key=lambda item: item[1])
    names = ", ".join(sorted(black_box))
    detail = f"at most {most} of {count} images (eps {written(eps)}) fall only to {names}"
    remedy = "gradients are masked: read the checks of gradients, and find a surrogate"
    return rare(most, count), detail, remedy


@check("recorded inside the budget")
def recorded_inside(records: Sequence[Record], norm: Threat) -> Finding:
    """No record says that an image was changed by more than its budget."""
    if norm == "stadv":
        return None, "records have no displacements"
    outside = sum(getattr(record, norm) > limit(record.eps) for record in records)
    detail = f"{outside} of {len(records)} attacked images lie outside their budget in {norm}"
    return not outside, detail, "those are no attacks of this budget"


def number(records: Iterable[Record]) -> int:
    """Number of images in the records."""
    return len({record.image for record in records})


def views(records: Sequence[Record]) -> list[tuple[Score, float]]:
    """Ways to score a record, and how far apart chance may leave two scores: the answer of the
    frozen draw, which is certain; the share of unseen draws, by `SPREAD` standard deviations.
    """
    found = [(PROTOCOLS[FROZEN].score, 0.0)]
    if draws := len(records[0].predictions):
        found.append((PROTOCOLS[FRESH].score, SPREAD * (0.5 / draws) ** 0.5))
    return found


def least(
    records: Iterable[Record],
    score: Score,
    budgets: Collection[float],
    *,
    attacks: Collection[str] | None = None,
) -> dict[int, float]:
    """Per image the least score within these budgets under these attacks, by default all."""
    chosen = (r for r in records if r.eps in budgets and (attacks is None or r.attack in attacks))
    return {
        image: score(record)
        for image, record in worst(chosen, lambda record: -score(record)).items()
    }


def rare(count: int, total: int) -> bool:
    """True if attacks that miss `MISSED` of all images may plausibly miss `count` of `total`."""
    return bool(bdtrc(count - 1, total, MISSED) >= SURE)
