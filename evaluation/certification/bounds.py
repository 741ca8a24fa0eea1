"""Certified radii from counts: how often noisy copies of an image were given one class.

The smoothed classifier is g(v) = argmax_c P[f(v + sigma n) = c] with n ~ N(0, I), for any
classifier f and images v in [0, 1]. If its class has probability at least p >= 1/2 at v, it keeps
that class everywhere within the L2 distance sigma Phi^-1(p) of v (Cohen et al., ICML 2019,
theorem 1, with the probability of the runner-up bounded by 1 - p). Everything here bounds p.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betaln, ndtr, ndtri, xlog1py, xlogy
from scipy.stats import binomtest

from evaluation.results.statistics import clopper_pearson

TOLERANCE = 1e-12  # of bounds that have no closed form
LEAST_AT_ONCE, MOST_AT_ONCE = 10, 100  # samples between two looks at the results


def radius_of(probability: float, *, sigma: float) -> float:
    """sigma Phi^-1(probability), the certified L2 radius; negative below 1/2."""
    return float(sigma * ndtri(probability))


def probability_of(radius: float, *, sigma: float) -> float:
    """Phi(radius / sigma), the probability that certifies `radius`."""
    return float(ndtr(radius / sigma))


def lower_bound(hits: int, samples: int, *, alpha: float) -> float:
    """The probability below which `hits` of `samples` or more would occur in at most `alpha`.

    One-sided (Clopper & Pearson 1934): the lower end of the two-sided interval at 1 - 2 `alpha`.
    """
    return clopper_pearson(hits, samples, confidence=1 - 2 * alpha)[0]


def predicted_class(counts: ArrayLike, *, alpha: float) -> int | None:
    """PREDICT of Cohen et al. 2019: the class of g from the counts (K,) of noisy copies, or None.

    A class other than g's is returned with probability at most `alpha` (Hung & Fithian 2019).
    None, an abstention, where the two most frequent classes are too close: a two-sided binomial
    test at 1/2 has a p-value above `alpha`.
    """
    counts = np.asarray(counts)
    if counts.sum() < 1:
        raise ValueError(f"counts={counts.tolist()}: no samples; give at least one")
    second, first = np.argsort(counts, stable=True)[-2:].tolist()
    ours, both = int(counts[first]), int(counts[first] + counts[second])
    return None if binomtest(ours, both).pvalue > alpha else first


def log_evidence(hits: ArrayLike, samples: ArrayLike, probability: ArrayLike) -> np.ndarray:
    """ln E of `hits` of `samples` against p = `probability`, arrays that broadcast.

        E = Beta(k + 1/2, m - k + 1/2) / Beta(1/2, 1/2) / (p^k (1 - p)^(m - k))

    The likelihood averaged over Jeffreys' prior against that of p: under p a martingale of mean 1,
    which reaches 1 / alpha at any time with probability at most alpha (Ville 1939). It is the
    wealth of a bet against p (Voracek, NeurIPS 2024; Waudby-Smith & Ramdas 2024).
    """
    hits, probability = np.asarray(hits), np.asarray(probability)
    misses = np.asarray(samples) - hits
    mixture = betaln(hits + 0.5, misses + 0.5) - betaln(0.5, 0.5)
    return mixture - xlogy(hits, probability) - xlog1py(misses, -probability)


class Interval(NamedTuple):
    """Bounds on a probability."""

    low: float
    high: float


def anytime_interval(hits: int, samples: int, *, alpha: float) -> Interval:
    """All p with E < 1 / `alpha`: the probability that p is ever outside is at most `alpha`."""
    low = _anytime_lower_bound(hits, samples, alpha)
    return Interval(low, 1 - _anytime_lower_bound(samples - hits, samples, alpha))


def _anytime_lower_bound(hits: int, samples: int, alpha: float) -> float:
    if not hits:
        return 0.0

    def excess(probability: float) -> float:
        return float(log_evidence(hits, samples, probability)) + log(alpha)

    # E falls from infinity at p = 0 to less than 1 at the observed share.
    root = float(brentq(excess, 1e-300, hits / samples, xtol=TOLERANCE))  # type: ignore[arg-type]
    return max(0.0, root - TOLERANCE)


class FixedTest:
    """Count `planned` samples, then bound the probability of a hit from below (CERTIFY)."""

    def __init__(self, planned: int, *, alpha: float) -> None:
        self.planned = planned
        self.alpha = alpha
        self.hits = 0
        self.samples = 0

    @property
    def next_samples(self) -> int:
        """Samples to draw next; 0 when all are counted."""
        return min(MOST_AT_ONCE, self.planned - self.samples)

    def update(self, outcomes: np.ndarray) -> None:
        """Count `outcomes` (M,) bool, hits or not."""
        self.hits += int(outcomes.sum())
        self.samples += len(outcomes)

    @property
    def bounds(self) -> Interval:
        """Bounds on the probability; 1 from above, where nothing is claimed."""
        if self.next_samples:
            raise RuntimeError(f"{self.samples} of {self.planned} samples are no result yet")
        return Interval(lower_bound(self.hits, self.samples, alpha=self.alpha), 1.0)


class SequentialTest:
    """Compare an unknown probability p with each of `probabilities`, in as few samples as it takes.

    A comparison ends as soon as the evidence against equality (`log_evidence`) reaches 1 / `alpha`:
    p is then taken to lie on the side of the observed share. The probability that any of them ever
    ends wrongly is at most `alpha`, for all together: where p0 lies between p and the observed
    share, its likelihood is greater than that of p, so that a wrong decision about p0 needs the
    evidence against p itself to reach 1 / `alpha`. After `most` samples it ends undecided.
    """

    def __init__(self, probabilities: Sequence[float], *, alpha: float, most: int = 10**9) -> None:
        self.probabilities = np.array(probabilities)
        self.most = most
        self.alpha = alpha
        self.hits = 0
        self.samples = 0
        self._decided = Interval(0.0, 1.0)

    @property
    def undecided(self) -> np.ndarray:
        """The probabilities whose comparison with p has not ended."""
        low, high = self._decided
        return self.probabilities[(low < self.probabilities) & (self.probabilities < high)]

    @property
    def next_samples(self) -> int:
        """Samples to draw next, a quarter of those so far; 0 when the test has ended."""
        if not len(self.undecided):
            return 0
        wanted = min(max(LEAST_AT_ONCE, self.samples // 4), MOST_AT_ONCE)
        return min(wanted, self.most - self.samples)

    def update(self, outcomes: np.ndarray) -> None:
        """Count `outcomes` (M,) bool in their order, up to the last decision."""
        compared = self.undecided
        if not len(compared) or not len(outcomes):
            return
        hits = self.hits + np.cumsum(outcomes)
        samples = self.samples + np.arange(1, len(outcomes) + 1)
        evidence = log_evidence(hits[:, None], samples[:, None], compared)
        decisive = evidence >= -log(self.alpha)
        ended = decisive.any(0)
        ends = np.where(ended, decisive.argmax(0), len(outcomes) - 1)
        above = hits[ends] > compared * samples[ends]
        low, high = self._decided
        self._decided = Interval(
            max([low, *compared[ended & above]]), min([high, *compared[ended & ~above]])
        )
        last = ends.max()
        self.hits, self.samples = int(hits[last]), int(samples[last])

    @property
    def bounds(self) -> Interval:
        """Bounds on p: by all samples so far, and by the comparisons that have ended."""
        found = anytime_interval(self.hits, self.samples, alpha=self.alpha)
        return Interval(max(found.low, self._decided.low), min(found.high, self._decided.high))
