"""Certified radii from counts: how often noisy copies of an image were given one class.

The smoothed classifier is g(v) = argmax_c P[f(v + sigma n) = c] with n ~ N(0, I), for any
classifier f and images v in [0, 1]. If its class has probability at least p >= 1/2 at v, it keeps
that class everywhere within the L2 distance sigma Phi^-1(p) of v (Cohen et al., ICML 2019,
theorem 1, with the probability of the runner-up bounded by 1 - p). Everything here bounds p.
"""

from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaincinv, betaln, ndtr, ndtri, xlog1py, xlogy

from evaluation.results.statistics import clopper_pearson, sign_test

TOLERANCE = 1e-12  # of bounds that have no closed form
LEAST_AT_ONCE, MOST_AT_ONCE = 5, 100  # samples between two looks at the results
LARGEST_LIKELY = 0.999
"""Posterior quantile: that a probability is larger is too unlikely to draw more samples for it."""


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
    equal = sign_test(int(counts[first]), int(counts[second]))
    return None if equal > alpha else first


def log_evidence(hits: ArrayLike, samples: ArrayLike, probability: ArrayLike) -> np.ndarray:
    """ln E of `hits` of `samples` for a share above p = `probability`, arrays that broadcast.

        E = 1 / (1 - p) integral_p^1 q^k (1 - q)^(m - k) dq / (p^k (1 - p)^(m - k))

    The likelihood averaged over all larger probabilities, against that of p. If the probability of
    a hit is p or less, E is a supermartingale from 1, which reaches 1 / alpha at any time with
    probability at most alpha (Ville 1939): the wealth of a bet that wins on hits (Voracek, NeurIPS
    2024; Waudby-Smith & Ramdas 2024). Where E > 1, it falls in p: the likelihood is log-concave,
    so that with s = d/dp ln(p^k (1 - p)^(m - k)) the average is at most that of exp(s (q - p)) for
    q - p exponential of rate 1 / (1 - p), E <= 1 / (1 - s (1 - p)), and therefore
    d/dp ln E = (1 - 1 / E) / (1 - p) - s <= 0.
    """
    hits, probability = np.asarray(hits), np.asarray(probability)
    misses = np.asarray(samples) - hits
    with np.errstate(divide="ignore"):  # no mass above p in double precision: no evidence
        above = np.log(betaincc(hits + 1, misses + 1, probability))
    mixture = betaln(hits + 1, misses + 1) + above - np.log1p(-probability)
    return mixture - xlogy(hits, probability) - xlog1py(misses, -probability)


class Interval(NamedTuple):
    """Bounds on a probability."""

    low: float
    high: float


def anytime_interval(hits: int, samples: int, *, alpha: float) -> Interval:
    """All p with E < 1 / `alpha` for hits and for misses.

    The probability that p is ever below is at most `alpha`, and so is that of ever above.
    """
    low = _anytime_lower_bound(hits, samples, alpha)
    return Interval(low, 1 - _anytime_lower_bound(samples - hits, samples, alpha))


def _anytime_lower_bound(hits: int, samples: int, alpha: float) -> float:
    if not hits:
        return 0.0
    # It takes half a second to import, and programs must refuse a wrong flag at once.
    from scipy.optimize import brentq

    def excess(probability: float) -> float:
        return float(log_evidence(hits, samples, probability)) + log(alpha)

    # E falls from infinity at p = 0 to at most 1 at the observed share.
    share = min(hits / samples, 1 - TOLERANCE)
    root = float(brentq(excess, 1e-300, share, xtol=TOLERANCE))  # type: ignore[arg-type]
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

    A comparison ends as soon as the evidence for a larger p, or that for a smaller one
    (`log_evidence` of hits, or of misses), reaches 1 / `alpha`. The probability that any of them
    ever ends with a p that is too large is at most `alpha`, for all together: as evidence falls in
    p0, a wrong decision about p0 > p needs the evidence against p itself to reach 1 / `alpha`. The
    same holds for a p that is too small. After `most` samples a comparison ends undecided, and all
    end as soon as they are unlikely to show a larger p: the samples left would not, were p the
    quantile `LARGEST_LIKELY` of its posterior under a uniform prior (stochastic curtailment; Lan,
    Simon & Halperin 1982). To stop early, for any reason, makes no decision wrong.
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
        """Samples to draw next, an eighth of those so far; 0 when the test has ended."""
        left = self.most - self.samples
        if not self.samples:
            return min(LEAST_AT_ONCE, left)
        likely = betaincinv(self.hits + 1, self.samples - self.hits + 1, LARGEST_LIKELY)
        best = log_evidence(self.hits + ceil(likely * left), self.most, self.undecided)
        if not (best >= -log(self.alpha)).any():
            return 0
        return min(max(LEAST_AT_ONCE, self.samples // 8), MOST_AT_ONCE, left)

    def update(self, outcomes: np.ndarray) -> None:
        """Count `outcomes` (M,) bool in their order, up to the last decision."""
        compared = self.undecided
        if not len(compared) or not len(outcomes):
            return
        hits = self.hits + np.cumsum(outcomes)[:, None]
        samples = self.samples + np.arange(1, len(outcomes) + 1)[:, None]
        above = log_evidence(hits, samples, compared) >= -log(self.alpha)
        below = log_evidence(samples - hits, samples, 1 - compared) >= -log(self.alpha)
        ended = (above | below).any(0)
        ends = np.where(ended, (above | below).argmax(0), len(outcomes) - 1)
        larger = above[ends, np.arange(len(compared))]
        low, high = self._decided
        self._decided = Interval(
            max([low, *compared[ended & larger]]), min([high, *compared[ended & ~larger]])
        )
        last = ends.max()
        self.hits, self.samples = int(hits[last, 0]), int(samples[last, 0])

    @property
    def bounds(self) -> Interval:
        """Bounds on p: by all samples so far, and by the comparisons that have ended."""
        found = anytime_interval(self.hits, self.samples, alpha=self.alpha)
        return Interval(max(found.low, self._decided.low), min(found.high, self._decided.high))
