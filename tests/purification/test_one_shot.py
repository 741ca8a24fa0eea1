"""One-shot denoising against the posterior mean of a Gaussian."""

import pytest
import torch

from purification import OneShotDenoiser
from rdc import OptimalDenoiser
from tests.support.oracle import some_images


def test_posterior_mean_of_a_gaussian_on_the_scale_of_images():
    """E[clean | v] = (s^2 v + sigma^2 m) / (s^2 + sigma^2) for clean images N(m, s^2)."""
    center, spread, sigma = 0.3, 0.1, 0.25
    x = torch.full((1, 1, 2, 2), 2 * center - 1, dtype=torch.float64)
    denoiser = OptimalDenoiser(x, torch.tensor([0]), bandwidth=2 * spread)
    noisy = some_images(5) - 0.4  # some of them outside [0, 1]
    expected = (spread**2 * noisy + sigma**2 * center) / (spread**2 + sigma**2)
    found = OneShotDenoiser(denoiser, sigma=sigma)(noisy)
    torch.testing.assert_close(found, expected)


def test_other_sizes_are_resized():
    denoiser = OptimalDenoiser(torch.zeros(1, 1, 2, 2), torch.tensor([0]), bandwidth=0.5)
    purifier = OneShotDenoiser(denoiser, sigma=0.1)
    assert purifier(torch.full((3, 1, 4, 4), 0.5)).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("sigma", [0, float("inf"), float("nan")])
def test_sigma_must_be_positive_and_finite(sigma):
    denoiser = OptimalDenoiser(torch.zeros(1, 1, 2, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=f"sigma={sigma} must be positive and finite"):
        OneShotDenoiser(denoiser, sigma=sigma)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.ones(1, 1, 2, 2, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(1, 3, 2, 2), "shape"),
        (torch.zeros(1, 2, 2), "shape"),
    ],
)
def test_other_images_are_refused(images: torch.Tensor, message: str):
    denoiser = OptimalDenoiser(torch.zeros(1, 1, 2, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=f"images: {message}"):
        OneShotDenoiser(denoiser, sigma=0.1)(images)
