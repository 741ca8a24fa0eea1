"""Calibration: the distance between the confidence in answers and the share of right ones.

Functions take, for N images, the `confidences` (N,) in [0, 1] in the answers given, and whether
each answer is `right` (N,).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.results.metrics import Accuracy

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: its mean in [0, 1], and their accuracy."""

    confidence: float
    accuracy: Accuracy


def reliability(confidences: Sequence[float], right: Sequence[bool]) -> list[Bin | None]:
    """Ten bins of equal width over the confidence; None for a bin without answers.

    A bin holds its lower edge, the last one its upper edge too.
    """
    bins: list[tuple[list[float], list[bool]]] = [([], []) for _ in range(BINS)]
    for confidence, correct in zip(confidences, right, strict=True):
        held, answers = bins[min(int(confidence * BINS), BINS - 1)]
        held.append(confidence)
        answers.append(correct)
    return [Bin(fmean(held), Accuracy.of(answers)) if held else None for held, answers in bins]


def calibration_error(bins: Sequence[Bin | None]) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017, eq. 3).

    The mean of |accuracy - confidence| over the bins, weighted by their counts.
    """
    full = [(part.accuracy, part.confidence) for part in bins if part is not None]
    total = sum(accuracy.images for accuracy, _ in full)
    return sum(each.images * abs(each.mean - confidence) for each, confidence in full) / total
