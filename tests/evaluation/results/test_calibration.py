"""Calibration errors by hand, and of confidences that are the probabilities of being right."""

import numpy as np
import pytest

from evaluation.results.calibration import calibration_error, reliability


def test_calibration_by_hand() -> None:
    """Four answers at 0.95, three of them right; one right at 0.3, the edge of a bin."""
    bins = reliability([0.95, 0.95, 0.3, 0.95, 0.95], [True, False, True, True, True])
    assert [part.accuracy.images if part else 0 for part in bins] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 4]
    assert calibration_error(bins) == pytest.approx((4 * abs(0.75 - 0.95) + abs(1 - 0.3)) / 5)
    assert reliability([1.0], [True])[-1] is not None


def test_true_probabilities_are_calibrated_and_doubled_odds_are_not() -> None:
    """The error of confidence sqrt(p), for p uniform in [0, 1], is the mean of sqrt(p) - p: 1/6."""
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    right = (rng.random(200_000) < p).tolist()
    assert calibration_error(reliability(p.tolist(), right)) < 0.005
    over = calibration_error(reliability(np.sqrt(p).tolist(), right))
    assert over == pytest.approx(1 / 6, abs=0.005)


def test_confidences_and_answers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        reliability([0.5, 0.6], [True])
