"""Temperatures come back from logits that were drawn at them."""

import math

import pytest
import torch
from torch import Tensor

from training.temperature import fit_temperature


@pytest.mark.parametrize("temperature", [0.01, 1.0, 250.0])
def test_recovers_the_temperature_of_the_labels(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * temperature * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    posterior = (logits / temperature).softmax(1)
    labels = torch.multinomial(posterior, 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def certain(margins: list[float]) -> tuple[Tensor, Tensor]:
    """Logits of three classes with these margins, and labels that are all right."""
    labels = torch.arange(len(margins)) % 3
    logits = torch.zeros(len(margins), 3, dtype=torch.float64)
    logits[torch.arange(len(margins)), labels] = torch.tensor(margins, dtype=torch.float64)
    logits[torch.arange(len(margins)), (labels + 1) % 3] = -math.inf
    return logits, labels


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_images_that_are_all_right_are_as_certain_as_their_number_allows(scale: float) -> None:
    """The cross-entropy alone would be 0 at every small temperature."""
    temperature = fit_temperature(*certain(16 * [scale]))
    assert temperature == pytest.approx(scale / math.log(16), rel=1e-3)


def test_equal_logits_among_right_ones_change_nothing() -> None:
    some, more = (fit_temperature(*certain([1.0, 2.0, 3.0, *ties])) for ties in ([], [0.0]))
    assert more == pytest.approx(some, rel=1e-3) and some > 0.5


def test_an_error_among_the_images_is_enough() -> None:
    """Their share is then the confidence, where two classes have one margin."""
    logits, labels = certain(10 * [4.0])
    labels[0] = 2
    assert fit_temperature(logits, labels) == pytest.approx(4 / math.log(9), rel=1e-3)
