"""What happened to each image, from the records: its worst answer, confusions, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.results.statistics import clopper_pearson
from rdc.runs.run_log import Record

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


def answers(records: Sequence[Record], eps: str) -> list[Answer]:
    """The worst answer for every image at a budget, by image.

    The most confident wrong one over the attacks, those of smaller budgets, and the image as it is;
    where all are right, the least confident.
    """
    worst: dict[int, Answer] = {}
    for record in records:
        if float(f"{record['eps']:g}") > float(eps):
            continue
        answer = Answer(
            record["image"], record["label"], record["frozen"], record["frozen_confidence"]
        )
        if answer.image not in worst or harm(answer) > harm(worst[answer.image]):
            worst[answer.image] = answer
    return [worst[image] for image in sorted(worst)]


def harm(answer: Answer) -> float:
    return -answer.confidence if answer.right else answer.confidence


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
