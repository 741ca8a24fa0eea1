"""Exact confidence intervals and tests for counts of images."""

from collections.abc import Sequence

from scipy.special import bdtr, betaincinv


def clopper_pearson(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of an accuracy, `correct` of `count` images (Clopper & Pearson 1934)."""
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"correct={correct} must be between 0 and count={count}, count at least 1")
    tail = (1 - confidence) / 2
    low = float(betaincinv(correct, count - correct + 1, tail)) if correct else 0.0
    wrong = count - correct
    high = float(betaincinv(correct + 1, wrong, 1 - tail)) if wrong else 1.0
    return low, high


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """P-value that two defenses are equally accurate, from the same images (McNemar 1947, exact).

    Only images on which they differ count: under the hypothesis each of them is a fair coin.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} images: give the same ones, at least one")
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    return sign_test(better, worse)


def sign_test(first: int, second: int) -> float:
    """P-value, two-sided and exact, that two outcomes with these counts are equally likely."""
    return float(min(1.0, 2 * bdtr(min(first, second), first + second, 0.5)))
