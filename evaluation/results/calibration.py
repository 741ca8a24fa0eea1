"""Calibration: the distance between the confidence in answers and the share of right ones.

Functions take, for N images, the `confidences` (N,) in [0, 1] in the answers given, and whether
each answer is `right` (N,).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.results.statistics import clopper_pearson

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: number, mean confidence, share of right ones in [0, 1].

    `low` and `high` end the 95 % Clopper-Pearson interval of the share.
    """

    count: int
    confidence: float
    accuracy: float
    low: float
    high: float


def reliability(confidences: Sequence[float], right: Sequence[bool]) -> list[Bin | None]:
    """Ten bins of equal width over the confidence; None for a bin without answers.

    A bin holds its lower edge, the last one its upper edge too.
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, correct in zip(confidences, right, strict=True):
        bins[min(int(confidence * BINS), BINS - 1)].append((confidence, correct))
    return [_bin(part) if part else None for part in bins]


def _bin(part: list[tuple[float, bool]]) -> Bin:
    count, correct = len(part), sum(right for _, right in part)
    interval = clopper_pearson(correct, count)
    return Bin(count, fmean(confidence for confidence, _ in part), correct / count, *interval)


def calibration_error(bins: Sequence[Bin | None]) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017, eq. 3).

    The mean of |accuracy - confidence| over the bins, weighted by their counts.
    """
    full = [part for part in bins if part is not None]
    total = sum(part.count for part in full)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in full) / total
