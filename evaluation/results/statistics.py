"""Exact confidence intervals and tests for counts of images."""

from collections.abc import Sequence

from scipy.stats import beta, binomtest


def clopper_pearson(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of an accuracy, `correct` of `count` images (Clopper & Pearson 1934)."""
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"correct={correct} must be between 0 and count={count}, count at least 1")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, correct, count - correct + 1)) if correct else 0.0
    high = float(beta.ppf(1 - tail, correct + 1, count - correct)) if correct < count else 1.0
    return low, high


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """P-value that two defenses are equally accurate, from the same images (McNemar 1947, exact).

    Only images on which they differ count: under the hypothesis each of them is a fair coin.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} images: give the same ones, at least one")
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
