"""Samplers against Gaussian data, whose probability flow is known."""

from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor

from rdc.sampling import churned, edm_sigmas, heun, heun_step

MEAN, DEVIATION = 0.3, 0.4


def denoise(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x, sigma] of N(MEAN, DEVIATION^2) pixels."""
    return MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - MEAN)


def exact(x: Tensor, sigma: float) -> Tensor:
    """The end at sigma = 0 of the flow through x: deviations shrink with sqrt(s^2 + sigma^2)."""
    return MEAN + (x - MEAN) * DEVIATION / sqrt(DEVIATION**2 + sigma**2)


def start(sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sigma * torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=generator)


def error(steps: int) -> float:
    x = start(10.0)
    found = heun(denoise, x, edm_sigmas(steps, sigma_min=1e-4, sigma_max=10.0))
    return float((found - exact(x, 10.0)).abs().max())


def test_heun_reaches_the_flows_end_and_converges_with_second_order() -> None:
    assert error(320) < 1e-4
    for steps in (80, 160, 320):
        assert 3.5 < error(steps) / error(2 * steps) < 5.0


def test_levels_run_from_high_to_low_to_zero() -> None:
    sigmas = edm_sigmas(5, sigma_min=0.1, sigma_max=3.0)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == pytest.approx(3.0) and sigmas[4] == pytest.approx(0.1) and sigmas[5] == 0
    assert (sigmas.diff() < 0).all()
    assert edm_sigmas(1, sigma_max=2.0).tolist() == pytest.approx([2.0, 0.0])


@pytest.mark.parametrize("bad", [{"steps": 0}, {"sigma_min": 3.0}, {"sigma_min": 0.0}])
def test_bad_levels_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="needs steps >= 1 and 0 < sigma_min < sigma_max"):
        edm_sigmas(**{"steps": 3, "sigma_min": 0.1, "sigma_max": 3.0, **bad})


def test_churn_adds_the_missing_variance() -> None:
    x, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    raised, sigma = churned(x, 2.0, 0.25, noise)
    assert sigma == 2.5
    assert float(raised) == pytest.approx(sqrt(2.5**2 - 2.0**2))


def test_stochastic_sampler_has_the_data_distribution() -> None:
    """Moments through every step exactly: the sampler is affine in its start and its draws."""
    sigmas = edm_sigmas(60, sigma_min=0.005, sigma_max=10.0)
    size = len(sigmas)
    inputs = torch.eye(size, dtype=torch.float64)  # row 0 the start, the others one draw each

    def run(rows: Tensor) -> Tensor:
        values = rows[:, :, None, None, None]
        x = MEAN + sqrt(DEVIATION**2 + 10.0**2) * values[:, 0]
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas.tolist()), start=1):
            x, raised = churned(x, sigma, 20.0 / (size - 1), values[:, step])
            x = heun_step(denoise, x, raised, next_sigma)
        return x.flatten()

    mean = run(torch.zeros(1, size, dtype=torch.float64))
    deviation = (run(inputs) - mean).square().sum().sqrt()
    assert float(mean) == pytest.approx(MEAN, abs=2e-3)
    assert float(deviation) == pytest.approx(DEVIATION, rel=2e-2)


def test_sampler_is_differentiable() -> None:
    x = start(1.0).requires_grad_()
    ends = heun(denoise, x, edm_sigmas(30, sigma_min=0.01, sigma_max=1.0))
    (gradient,) = torch.autograd.grad(ends.sum(), x)
    torch.testing.assert_close(
        gradient, torch.full_like(x, DEVIATION / sqrt(DEVIATION**2 + 1)), rtol=2e-3, atol=0
    )


def test_last_step_is_the_estimate() -> None:
    x = start(0.5)
    torch.testing.assert_close(heun_step(denoise, x, 0.5, 0.0), denoise(x, 0.5))
