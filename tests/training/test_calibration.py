"""Calibration: the candidates, and their measurement for both estimators."""

from dataclasses import replace
from pathlib import Path

import pytest

from rdc import ClassifierConfig, MaximizationConfig
from rdc.data import load
from tests.support.tiny import NETWORK, tiny_denoiser
from training.calibration import Calibration, classifiers, maximizations
from training.config import CalibrationConfig

CONFIG = CalibrationConfig(
    model="x", out=Path("x"), levels=(2, 3), sigma_min=(0.5, 0.7), sigma_max=(2.0,), attacked=4,
    steps=2, batch_size=4,
)  # fmt: skip
GIVEN = ClassifierConfig(levels=9, draws=5)


def test_candidates_are_all_combinations() -> None:
    """A posterior reads one noise level; what is not listed stays as the model has it."""
    losses = classifiers(CONFIG, GIVEN)
    assert {(c.levels, c.sigma_min, c.sigma_max) for c in losses} == {
        (2, 0.5, 2.0), (2, 0.7, 2.0), (3, 0.5, 2.0), (3, 0.7, 2.0),
    }  # fmt: skip
    assert {(c.draws, c.estimator) for c in losses} == {(5, "losses")}
    posteriors = classifiers(replace(CONFIG, draws=(1, 8)), replace(GIVEN, estimator="posterior"))
    assert [(c.draws, c.sigma_min) for c in posteriors] == [(1, 0.5), (1, 0.7), (8, 0.5), (8, 0.7)]
    assert {(c.levels, c.estimator) for c in posteriors} == {(9, "posterior")}
    both = classifiers(replace(CONFIG, estimator=("losses", "posterior")), GIVEN)
    assert len(both) == len(set(both)) == 6


def test_maximizations_may_be_left_out() -> None:
    given = MaximizationConfig()
    assert maximizations(replace(CONFIG, maximization_steps=()), given) == []
    assert len(maximizations(CONFIG, given)) == 3 * 2


@pytest.mark.parametrize("estimator", ["losses", "posterior"])
def test_both_estimators_are_measured(estimator) -> None:
    """The figures are shares of the images, and a temperature; the weights are random."""
    network = replace(NETWORK, num_classes=10, conditioning="classifier")
    denoiser = tiny_denoiser(network, classes="0123456789")
    data = load("digits", "validation").subset(slice(8))
    candidate = ClassifierConfig(levels=2, sigma_min=0.5, estimator=estimator)
    figures = Calibration(CONFIG, denoiser, data).classifier(candidate)
    assert 0 <= figures.robust <= 1 and figures.clean * 8 == round(figures.clean * 8)
    assert figures.temperature > 0
