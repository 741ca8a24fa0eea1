"""Abstention: the errors that remain if a defense answers only where its confidence is high."""

import numpy as np
from numpy.typing import ArrayLike


def risk_coverage(confidences: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The risk-coverage curve (El-Yaniv & Wiener 2010) of N images: coverages (N,), risks (N,).

    At coverage k / N the k images of highest confidence are answered, and the risk is the share of
    wrong answers among them. Images of equal confidence are in random order: the risk is its exact
    expectation.
    """
    scores, wrong = np.asarray(confidences, float), 1 - np.asarray(right, float)
    _, level, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    mean_wrong = np.bincount(level, weights=wrong) / counts
    answered = np.arange(1, len(scores) + 1)
    return answered / len(scores), np.repeat(mean_wrong, counts).cumsum() / answered


def mean_risk(confidences: ArrayLike, right: ArrayLike) -> float:
    """The area under the risk-coverage curve: the mean risk over its N coverages, in [0, 1].

    AURC of Geifman, Uziel & El-Yaniv 2019. For a confidence that is independent of the errors it is
    the share of wrong answers.
    """
    return float(risk_coverage(confidences, right)[1].mean())


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """The probability that a positive scores higher than a negative; equal scores count half.

    The area under the ROC curve, from the rank sum (Hanley & McNeil 1982). 0.5: no separation.
    """
    parts = [np.asarray(part, float) for part in (positive, negative)]
    (count, rest), scores = map(len, parts), np.concatenate(parts)
    _, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[level]
    rank_sum = ranks[:count].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * rest))
