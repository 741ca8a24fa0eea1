"""Risk over coverage and AUROC: analytic cases, and definitions counted pair by pair."""

from itertools import permutations
from math import erf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.results.abstention import auroc, mean_risk, risk_coverage

scores = st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=6)


def test_errors_of_least_confidence_come_last() -> None:
    """With 3 of 10 wrong, all below the rest, the first error is at coverage 0.8."""
    confidences = np.linspace(1, 0.1, 10)
    coverage, risk = risk_coverage(confidences, [True] * 7 + [False] * 3)
    assert coverage == pytest.approx(np.arange(1, 11) / 10)
    assert risk == pytest.approx([0] * 7 + [1 / 8, 2 / 9, 3 / 10])
    assert mean_risk(confidences, [True] * 7 + [False] * 3) == pytest.approx(risk.mean())


def test_equal_confidences_have_the_share_of_errors_everywhere() -> None:
    assert risk_coverage([0.5] * 4, [True, False, True, True])[1] == pytest.approx([0.25] * 4)
    assert mean_risk([0.5] * 4, [True, False, True, True]) == pytest.approx(0.25)


@given(
    scores.flatmap(lambda s: st.tuples(st.just(s), st.permutations([i % 2 for i in range(len(s))])))
)
def test_risk_is_the_mean_over_all_orders_of_equal_confidences(drawn) -> None:
    confidences, right = drawn
    curves = []
    for order in permutations(range(len(confidences))):
        sorted_ = [confidences[i] for i in order]
        if sorted_ == sorted(sorted_, reverse=True):
            wrong = np.array([1 - right[i] for i in order])
            curves.append(wrong.cumsum() / np.arange(1, len(order) + 1))
    assert risk_coverage(confidences, right)[1] == pytest.approx(np.mean(curves, axis=0))


@pytest.mark.slow
def test_risk_of_uniform_confidence_that_is_the_probability_of_being_right() -> None:
    """At coverage c the mean confidence is 1 - c / 2: risk c / 2, area 1 / 4."""
    rng = np.random.default_rng(0)
    confidences = rng.random(200_000)
    right = rng.random(200_000) < confidences
    coverage, risk = risk_coverage(confidences, right)
    assert risk[20_000:] == pytest.approx(coverage[20_000:] / 2, abs=0.01)
    assert mean_risk(confidences, right) == pytest.approx(1 / 4, abs=0.005)


@given(scores, scores)
def test_auroc_counts_pairs(positive: list[float], negative: list[float]) -> None:
    wins = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(wins))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1)


def test_auroc_of_two_normals() -> None:
    """P(X > Y) = Phi(1 / sqrt 2) for X ~ N(1, 1) and Y ~ N(0, 1)."""
    rng = np.random.default_rng(0)
    found = auroc(rng.normal(1, 1, 100_000), rng.normal(0, 1, 100_000))
    assert found == pytest.approx((1 + erf(0.5)) / 2, abs=0.005)
