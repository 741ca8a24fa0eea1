"""What happened to each image, from the records: its worst answer, confusions, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.results.records import Record, worst
from evaluation.results.statistics import clopper_pearson

BINS = 10


@dataclass(frozen=True)
class Answer:
    """What the defense says about an image under its frozen draw, and how sure it is of that."""

    image: int
    label: int
    predicted: int
    confidence: float

    @property
    def right(self) -> bool:
        return self.predicted == self.label


def answers(records: Sequence[Record], eps: float) -> list[Answer]:
    """The worst answer for every image at a budget, by image.

    The most confident wrong one over the attacks, those of smaller budgets, and the image as it is;
    where all are right, the least confident.
    """
    within = (record for record in records if record.eps <= eps)
    return [
        Answer(record.image, record.label, record.frozen, record.frozen_confidence)
        for record in worst(within, harm).values()
    ]


def harm(record: Record) -> float:
    """Confidence in the frozen draw's answer; negative where that is right."""
    return -record.frozen_confidence if record.right else record.frozen_confidence


def confusion(found: Sequence[Answer], classes: int) -> np.ndarray:
    """Counts of images (classes, classes): the row is the label, the column the answer."""
    counts = np.zeros((classes, classes), dtype=int)
    for answer in found:
        counts[answer.label, answer.predicted] += 1
    return counts


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: how many, their mean confidence, and how many are right."""

    count: int
    confidence: float
    accuracy: float
    low: float
    high: float


def calibration(found: Sequence[Answer]) -> list[Bin | None]:
    """Ten bins of equal width over the confidence; None where no answer falls into one."""
    bins: list[list[Answer]] = [[] for _ in range(BINS)]
    for answer in found:
        bins[min(int(answer.confidence * BINS), BINS - 1)].append(answer)
    return [binned(part) if part else None for part in bins]


def binned(part: list[Answer]) -> Bin:
    right = sum(answer.right for answer in part)
    confidence = float(np.mean([answer.confidence for answer in part]))
    return Bin(len(part), confidence, right / len(part), *clopper_pearson(right, len(part)))


def calibration_error(bins: Sequence[Bin | None]) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighted by their images
    (Guo et al. 2017).
    """
    full = [part for part in bins if part is not None]
    total = sum(part.count for part in full)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in full) / total
