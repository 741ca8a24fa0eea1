"""Exact intervals against published values and their own coverage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from evaluation.results.statistics import clopper_pearson, mcnemar


def test_known_values() -> None:
    """387 of 512 images, and the rule of three for none and all."""
    assert clopper_pearson(387, 512) == pytest.approx((0.7163, 0.7925), abs=5e-4)
    assert clopper_pearson(0, 100) == pytest.approx((0, 1 - 0.025 ** (1 / 100)))
    assert clopper_pearson(100, 100) == pytest.approx((0.025 ** (1 / 100), 1))


@given(st.integers(1, 300), st.data())
def test_ends_are_where_the_tails_are(count: int, data: st.DataObject) -> None:
    """P(X >= k | low) = P(X <= k | high) = 2.5 %, the definition."""
    correct = data.draw(st.integers(0, count))
    low, high = clopper_pearson(correct, count)
    assert low <= correct / count <= high
    if correct > 0:
        assert binom.sf(correct - 1, count, low) == pytest.approx(0.025)
    if correct < count:
        assert binom.cdf(correct, count, high) == pytest.approx(0.025)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="correct=5"):
        clopper_pearson(5, 4)


def test_paired_test_counts_only_differences() -> None:
    """Nine images that the first alone gets right, one the other way: 2 (1 + 10) / 2^10."""
    first = [True] * 9 + [False] + [True] * 50
    second = [False] * 9 + [True] + [True] * 50
    assert mcnemar(first, second) == pytest.approx(22 / 1024)
    assert mcnemar(second, first) == pytest.approx(22 / 1024)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(ValueError, match="the same ones"):
        mcnemar(first, second[1:])
