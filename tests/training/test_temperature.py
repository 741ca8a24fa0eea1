"""Temperatures come back from logits that were drawn at them."""

import pytest
import torch

from training.temperature import fit_temperature


@pytest.mark.parametrize("temperature", [0.01, 1.0, 250.0])
def test_recovers_the_temperature_of_the_labels(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * temperature * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    posterior = (logits / temperature).softmax(1)
    labels = torch.multinomial(posterior, 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
