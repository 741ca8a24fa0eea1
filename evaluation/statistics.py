"""Statistics that cannot flatter: exact intervals on the number of images."""

from scipy.stats import beta


def clopper_pearson(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of an accuracy, `correct` of `count` images (Clopper & Pearson 1934)."""
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"correct={correct} must be between 0 and count={count}, count at least 1")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, correct, count - correct + 1)) if correct else 0.0
    high = float(beta.ppf(1 - tail, correct + 1, count - correct)) if correct < count else 1.0
    return low, high
