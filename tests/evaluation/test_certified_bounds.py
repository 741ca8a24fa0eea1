"""Certified radii from counts: published and exact values, coverage, and known true radii."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import binom, norm

from evaluation.certification.bounds import (
    SequentialTest,
    anytime_interval,
    log_evidence,
    lower_bound,
    predicted_class,
    probability_of,
    radius_of,
)

ALPHA = 0.001


@pytest.mark.parametrize(
    ("hits", "samples", "expected"),
    [(990, 1000, 0.976036), (950, 1000, 0.925047), (80, 100, 0.653557), (9990, 10_000, 0.997588)],
)
def test_lower_bound_golden_values(hits, samples, expected):
    assert lower_bound(hits, samples, alpha=ALPHA) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "expected"), [(100, 1.500), (1000, 2.463), (10_000, 3.199), (100_000, 3.811)]
)
def test_largest_radius_of_a_number_of_samples(samples, expected):
    bound = lower_bound(samples, samples, alpha=ALPHA)
    assert bound == pytest.approx(ALPHA ** (1 / samples), abs=1e-12)
    assert radius_of(bound, sigma=1.0) == pytest.approx(expected, abs=5e-4)


def test_without_a_hit_nothing_is_known():
    assert lower_bound(0, 100, alpha=ALPHA) == 0
    assert anytime_interval(0, 0, alpha=ALPHA) == (0, 1)
    assert anytime_interval(0, 50, alpha=ALPHA).low == 0


def test_radius_and_probability_are_inverse():
    assert radius_of(probability_of(0.4, sigma=0.25), sigma=0.25) == pytest.approx(0.4, abs=1e-12)
    assert probability_of(0.25, sigma=0.25) == pytest.approx(0.8413447461, abs=1e-9)


@pytest.mark.parametrize(("p", "expected"), [(0.55, 9.9e-4), (0.8, 9.2e-4), (0.99, 4.8e-4)])
def test_exact_miscoverage_of_the_lower_bound(p, expected):
    """The probability over all counts that the bound exceeds p: at most alpha, and close to it."""
    samples = 1000
    wrong = [k for k in range(samples + 1) if lower_bound(k, samples, alpha=ALPHA) > p]
    miscoverage = binom.pmf(wrong, samples, p).sum()
    assert miscoverage <= ALPHA
    assert miscoverage == pytest.approx(expected, rel=0.01)


def test_prediction_abstains_where_two_classes_are_close():
    assert predicted_class([10, 0], alpha=ALPHA) is None  # p-value 2 / 2^10 = 0.00195
    assert predicted_class([0, 3, 11], alpha=0.06) == 2  # 0.0574
    assert predicted_class([0, 3, 11], alpha=0.05) is None
    assert predicted_class([0, 0, 12], alpha=ALPHA) == 2
    with pytest.raises(ValueError, match="no samples"):
        predicted_class([0, 0], alpha=ALPHA)


def test_prediction_errs_with_probability_alpha_at_most():
    """Exact over all counts of two classes, the other class a little less probable."""
    samples, alpha, p = 40, 0.05, 0.5
    wrong = sum(
        binom.pmf(k, samples, p)
        for k in range(samples + 1)
        if predicted_class([k, samples - k], alpha=alpha) == 1
    )
    assert 0 < wrong <= alpha / 2 + 1e-12


def test_log_evidence_is_the_formula():
    hits, samples, p = 7, 10, 0.6
    mean = quad(lambda q: q**7 * (1 - q) ** 3, p, 1)[0] / (1 - p)
    expected = math.log(mean / (p**7 * (1 - p) ** 3))
    assert log_evidence(hits, samples, p) == pytest.approx(expected, rel=1e-9)
    # All hits: (1 - p^(m + 1)) / ((m + 1) (1 - p) p^m)
    assert math.exp(log_evidence(13, 13, 0.5)) == pytest.approx((2**14 - 1) / 14, rel=1e-12)


@given(samples=st.integers(1, 40), p=st.floats(0.01, 0.99), smaller=st.floats(0.01, 1))
def test_evidence_against_the_truth_has_mean_one_at_most(samples, p, smaller):
    hits = np.arange(samples + 1)
    evidence = np.exp(log_evidence(hits, samples, p))
    assert (binom.pmf(hits, samples, p) * evidence).sum() == pytest.approx(1, rel=1e-9)
    assert (binom.pmf(hits, samples, p * smaller) * evidence).sum() <= 1 + 1e-9


@given(samples=st.integers(1, 5000), share=st.floats(0, 1), p=st.floats(0.001, 0.99))
def test_evidence_falls_in_the_probability_where_it_says_anything(samples, share, p):
    """So that one run of samples answers for all radii together."""
    hits = round(share * samples)
    here, further = log_evidence(hits, samples, [p, p + 1e-4])
    assert further <= max(here, 0) + 1e-9


@given(samples=st.integers(1, 5000), share=st.floats(0, 1), p=st.floats(0.001, 0.999))
def test_anytime_interval_holds_what_the_evidence_does_not_exclude(samples, share, p):
    hits = round(share * samples)
    low, high = anytime_interval(hits, samples, alpha=ALPHA)
    assert low <= hits / samples <= high
    needed = -math.log(ALPHA)
    if abs(p - low) > 1e-9 and abs(p - high) > 1e-9:
        assert (log_evidence(hits, samples, p) >= needed) == (p < low)
        assert (log_evidence(samples - hits, samples, 1 - p) >= needed) == (p > high)


def decide(test: SequentialTest, outcomes: np.ndarray) -> SequentialTest:
    for start in range(0, len(outcomes), 100):
        test.update(outcomes[start : start + 100])
    return test


@pytest.mark.slow
@pytest.mark.parametrize(
    ("r", "p", "samples", "certified"),
    [
        (0.0, 0.6, 487, True), (0.0, 0.7, 108, True), (0.0, 0.9, 22, True),
        (0.5, 0.8, 321, True), (0.5, 0.95, 42, True),
        (1.0, 0.9, 671, True), (1.0, 0.95, 156, True), (1.0, 0.99, 68, True),
        (1.0, 0.7, 148, False), (2.0, 0.999, 534, True), (2.0, 0.99, 2269, True),
    ],
)  # fmt: skip
def test_mean_samples_of_the_sequential_test(r, p, samples, certified):
    """At most those of a bet on either side by Jeffreys' prior (Voracek 2024); sigma is 1."""
    rng = np.random.default_rng(0)
    question = probability_of(r, sigma=1.0)
    runs = [
        decide(SequentialTest([question], alpha=ALPHA), rng.random(20_000) < p) for _ in range(60)
    ]
    used = np.array([run.samples for run in runs])
    right = [run.bounds.low >= question if certified else run.bounds.high <= question
             for run in runs]  # fmt: skip
    assert np.mean(right) > 0.95
    assert 0.7 * samples < used.mean() < samples + 2 * used.std() / 60**0.5


def test_sequential_answer_does_not_depend_on_the_parts():
    rng = np.random.default_rng(1)
    outcomes = rng.random(3000) < 0.9
    questions = [probability_of(r, sigma=1.0) for r in (0.0, 0.5, 1.0)]
    whole = decide(SequentialTest(questions, alpha=ALPHA), outcomes)
    parts = SequentialTest(questions, alpha=ALPHA)
    for part in np.array_split(outcomes, 77):
        parts.update(part)
    assert (parts.hits, parts.samples, parts.bounds) == (whole.hits, whole.samples, whole.bounds)
    assert not len(whole.undecided)


def test_sequential_test_stops_at_the_last_decision():
    test = decide(SequentialTest([0.5], alpha=ALPHA), np.ones(1000, bool))
    assert test.samples == test.hits < 20
    assert log_evidence(test.hits, test.samples, 0.5) >= -math.log(ALPHA)
    assert log_evidence(test.hits - 1, test.samples - 1, 0.5) < -math.log(ALPHA)
    assert test.bounds.low >= 0.5


def test_sequential_test_may_end_undecided():
    test = decide(SequentialTest([0.5, 0.95], alpha=ALPHA), np.arange(200) % 20 > 0)
    assert test.undecided.tolist() == [0.95]
    assert test.samples == 200
    assert test.bounds.low < 0.95 < test.bounds.high


def stop_by_itself(test: SequentialTest, outcomes: np.ndarray) -> SequentialTest:
    """The test after as many of the outcomes as it asks for."""
    used = 0
    while count := test.next_samples:
        test.update(outcomes[used : used + count])
        used += count
    return test


def test_the_sequential_test_gives_up_where_a_larger_p_is_unlikely():
    """To refuse p > 0.84 by evidence takes p = 0.75 some 300 samples."""
    rng = np.random.default_rng(6)
    threshold = probability_of(1.0, sigma=1.0)
    ends = [
        stop_by_itself(SequentialTest([threshold], alpha=ALPHA, most=1000), rng.random(1000) < 0.75)
        for _ in range(30)
    ]
    assert np.mean([test.samples for test in ends]) < 100
    assert sum(len(test.undecided) for test in ends) > 25


def test_giving_up_costs_few_certificates():
    """Few of images that 1000 samples certify in about every second case; and no wrong ones."""
    rng = np.random.default_rng(7)
    threshold = probability_of(0.5, sigma=1.0)
    certified, given_up = 0, 0
    for outcomes in rng.random((60, 1000)) < threshold + 0.06:
        whole = decide(SequentialTest([threshold], alpha=ALPHA, most=1000), outcomes)
        short = stop_by_itself(SequentialTest([threshold], alpha=ALPHA, most=1000), outcomes)
        assert not len(whole.undecided) or len(short.undecided)
        certified += not len(whole.undecided)
        given_up += len(short.undecided) > len(whole.undecided)
    assert 20 < certified < 50
    assert given_up <= 4


@pytest.mark.parametrize("most", [10, 11, 1000])
def test_hits_alone_are_never_given_up(most):
    """All of `most` samples are needed, and certify what they can."""
    largest = anytime_interval(most, most, alpha=0.3).low
    test = SequentialTest([largest - 1e-9], alpha=0.3, most=most)
    stop_by_itself(test, np.ones(most, bool))
    assert test.samples == most
    assert not len(test.undecided)


def certified_with_probability(p: float, threshold: float, *, most: int, alpha: float) -> float:
    """Exact probability that hits of probability p ever show more than `threshold`."""
    running, certified = np.ones(1), 0.0
    for samples in range(1, most + 1):
        running = np.append((1 - p) * running, 0) + np.append(0, p * running)
        shown = log_evidence(np.arange(samples + 1), samples, threshold) >= -math.log(alpha)
        certified += running[shown].sum()
        running = np.where(shown, 0, running)
    return certified


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_exact_miscoverage_of_the_sequential_test(r):
    """Below alpha, and close enough to it that few samples are wasted."""
    threshold = probability_of(r, sigma=1.0)
    wrong = certified_with_probability(threshold, threshold, most=400, alpha=ALPHA)
    assert 0.5 * ALPHA < wrong < ALPHA


def test_coverage_just_under_the_threshold():
    """Wrong certificates by simulation, all radii together; alpha is large to be measurable."""
    alpha, runs, samples = 0.05, 400, 300
    rng = np.random.default_rng(2)
    questions = [probability_of(r, sigma=1.0) for r in (0.25, 0.5, 0.75)]
    p = questions[0] - 1e-6
    wrong = 0
    for _ in range(runs):
        test = decide(SequentialTest(questions, alpha=alpha), rng.random(samples) < p)
        wrong += test.bounds.low > p
    # At most alpha, within three standard errors; and not zero, or the test would look at nothing.
    assert 0 < wrong <= runs * alpha + 3 * (runs * alpha) ** 0.5


def test_coverage_of_the_fixed_number_just_under_the_threshold():
    alpha, runs, samples = 0.05, 2000, 300
    p = probability_of(0.5, sigma=1.0) - 1e-6
    counts = np.random.default_rng(3).binomial(samples, p, runs)
    wrong = sum(
        radius_of(lower_bound(int(k), samples, alpha=alpha), sigma=1.0) >= 0.5 for k in counts
    )
    assert 0.5 * alpha < wrong / runs <= alpha + 3 * (alpha / runs) ** 0.5


@pytest.mark.parametrize("distance", [0.125, 0.25, 0.5])
def test_radius_of_a_linear_classifier(distance):
    """f(v) = [w v > b]: g is the same half-space, and the true radius the distance to its edge."""
    sigma, samples = 0.25, 100_000
    hits = np.random.default_rng(4).binomial(samples, norm.cdf(distance / sigma), 50)
    radii = [radius_of(lower_bound(int(k), samples, alpha=ALPHA), sigma=sigma) for k in hits]
    assert max(radii) <= distance
    assert np.mean(radii) >= 0.97 * distance


@pytest.mark.parametrize(("half_width", "distance", "least"), [(1.2, 0.25, 0.97), (0.3, 0.2, 0.0)])
def test_radius_of_a_gaussian_mixture(half_width, distance, least):
    """Class 1 is N(0, s^2), class 0 an equal mixture of N(-m, s^2) and N(m, s^2), on a line.

    Bayes' rule f answers 1 on an interval around 0, and g where more than half of the noise stays
    in it. A narrow interval has no certificate as large as the true radius.
    """
    sigma, samples = 0.25, 100_000
    start = half_width - distance  # of the image, below the upper end of the interval

    def probability(v: float) -> float:
        return float(norm.cdf((half_width - v) / sigma) - norm.cdf((-half_width - v) / sigma))

    true = brentq(lambda v: probability(v) - 0.5, start, 2 * half_width) - start  # type: ignore[operator]
    hits = np.random.default_rng(5).binomial(samples, probability(start), 50)
    radii = [radius_of(lower_bound(int(k), samples, alpha=ALPHA), sigma=sigma) for k in hits]
    assert least * true <= np.mean(radii) <= max(radii) <= true
