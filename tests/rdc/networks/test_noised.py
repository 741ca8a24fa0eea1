"""The denoiser of noised data against exact denoisers and posteriors."""

import pytest
import torch
from torch import Tensor

from rdc import ClassifierConfig, DiffusionClassifier, NoisedDenoiser, OptimalDenoiser
from rdc.denoiser import DenoiserLike, OneClassAtATime
from rdc.images import to_x
from tests.support.denoisers import random_denoiser
from tests.support.oracle import central_difference, some_images, two_classes

POINTS, LABELS = to_x(some_images(7)), torch.tensor([0, 1, 0, 1, 1, 2, 2])
X = to_x(some_images(4, seed=3))


@pytest.mark.parametrize(("bandwidth", "tau"), [(0.3, 0.4), (0.0, 0.5), (0.2, 0.0)])
def test_noised_data_are_wider_data(bandwidth: float, tau: float) -> None:
    """Images of width b seen through noise tau are images of width sqrt(b^2 + tau^2)."""
    found = NoisedDenoiser(OptimalDenoiser(POINTS, LABELS, bandwidth=bandwidth), tau)
    wider = OptimalDenoiser(POINTS, LABELS, bandwidth=(bandwidth**2 + tau**2) ** 0.5)
    sigmas = torch.tensor([0.02, 0.3, 1.0, 20.0], dtype=X.dtype)
    for sigma in (sigmas, 0.7):
        for method in ("denoise", "denoise_classes"):
            one, other = (getattr(each, method)(X, sigma) for each in (found, wider))
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def exact_log_odds(oracle, x: Tensor, sigma: float) -> Tensor:
    density = oracle.log_density(x, sigma)
    return density[:, 0] - density[:, 1]


def test_its_diffusion_classifier_is_the_posterior_at_the_noise() -> None:
    """log p_tau(x | 0) / p_tau(x | 1) of a mixture, in nats, down to levels near 0."""
    oracle, images, tau = two_classes(), some_images(6), 0.5
    config = ClassifierConfig(levels=80, sigma_min=0.02, sigma_max=60, draws=200, antithetic=True)
    logits = DiffusionClassifier(NoisedDenoiser(oracle, tau), config)(images)
    found, expected = logits[:, 0] - logits[:, 1], exact_log_odds(oracle, to_x(images), tau)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)


def test_no_noise_is_the_plain_classifier() -> None:
    denoiser, config = random_denoiser(), ClassifierConfig(levels=3)
    images = some_images(2, denoiser.image_shape)
    plain = DiffusionClassifier(denoiser, config)(images)
    assert torch.equal(DiffusionClassifier(NoisedDenoiser(denoiser, 0.0), config)(images), plain)


@pytest.mark.parametrize("conditioning", ["multihead", "label"])
def test_it_has_what_its_denoiser_has_and_exact_gradients(conditioning) -> None:
    denoiser = random_denoiser(conditioning=conditioning)
    noised = NoisedDenoiser(denoiser, 0.4)
    assert isinstance(noised, DenoiserLike) and isinstance(noised, OneClassAtATime)
    assert noised.num_classes == denoiser.num_classes
    assert noised.image_shape == denoiser.image_shape
    assert noised.class_names == denoiser.class_names
    classifier = DiffusionClassifier(noised, ClassifierConfig(levels=2))
    images = 0.2 + 0.6 * some_images(2, denoiser.image_shape)
    v = some_images(2, denoiser.image_shape, seed=5) - 0.5

    def value(images: Tensor) -> Tensor:
        return classifier(images)[:, 1].sum()

    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, images, v, 1e-5)
    torch.testing.assert_close((gradient * v).sum(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_bad_noise_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau={tau}"):
        NoisedDenoiser(two_classes(), tau)


def test_what_the_denoiser_lacks_is_refused() -> None:
    noised = NoisedDenoiser(two_classes(), 0.1)
    with pytest.raises(TypeError, match="no class_log_posterior"):
        noised.class_log_posterior(X, 0.3)
