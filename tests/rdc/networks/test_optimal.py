"""The exact denoiser of a finite data set against Tweedie's formula and brute force."""

import pytest
import torch

from rdc import OptimalDenoiser
from tests.support.oracle import MixtureDenoiser, some_images, two_classes


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Seven images of three classes, unequally many."""
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 0])
    return 2 * some_images(7, (1, 2, 3)) - 1, labels


def test_matches_the_posterior_mean_by_brute_force() -> None:
    points, labels = data()
    denoiser, sigma = OptimalDenoiser(points, labels), 0.7
    x = 2 * some_images(2, (1, 2, 3), seed=4) - 1
    got = denoiser.denoise_classes(x, torch.tensor(sigma))
    for b in range(2):
        for y in range(3):
            own = points[labels == y]
            weights = torch.tensor(
                [torch.exp(-((x[b] - p) ** 2).sum() / (2 * sigma**2)).item() for p in own]
            ).double()
            expected = (weights[:, None, None, None] * own).sum(0) / weights.sum()
            torch.testing.assert_close(got[b, y], expected)


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
def test_matches_the_score_of_its_density(bandwidth: float) -> None:
    """D = x + sigma^2 grad log p_sigma (Tweedie), per class and for equally likely classes."""
    points, labels = data()
    denoiser = OptimalDenoiser(points, labels, bandwidth=bandwidth)
    sigma = torch.tensor([0.4, 1.3], dtype=torch.float64)
    x = (2 * some_images(2, (1, 2, 3), seed=4) - 1).requires_grad_()
    density = denoiser.log_density(x, sigma)
    for y in range(3):
        (score,) = torch.autograd.grad(density[:, y].sum(), x, retain_graph=True)
        expected = x + sigma.square()[:, None, None, None] * score
        torch.testing.assert_close(denoiser.denoise_classes(x, sigma)[:, y], expected)
    (score,) = torch.autograd.grad(density.logsumexp(1).sum(), x)
    expected = x + sigma.square()[:, None, None, None] * score
    torch.testing.assert_close(denoiser.denoise(x, sigma), expected)


def test_a_blurred_data_set_is_a_mixture_of_gaussians() -> None:
    oracle = two_classes(components=3, std=0.4)
    denoiser = OptimalDenoiser(
        oracle.means.flatten(0, 1), torch.tensor([0, 0, 0, 1, 1, 1]), bandwidth=0.4
    )
    x, sigma = some_images(4), torch.tensor(0.8)
    for method in ("log_density", "denoise", "denoise_classes"):
        torch.testing.assert_close(
            getattr(denoiser, method)(x, sigma), getattr(oracle, method)(x, sigma)
        )


def test_everything_is_where_the_data_are() -> None:
    points, labels = data()
    expected = OptimalDenoiser(points, labels).buffers()
    with torch.device("meta"):
        found = OptimalDenoiser(points, labels).buffers()
    assert all(map(torch.equal, found, expected))


def test_little_noise_returns_the_nearest_image() -> None:
    points, labels = data()
    denoised = OptimalDenoiser(points, labels).denoise(points + 1e-3, torch.tensor(0.01))
    torch.testing.assert_close(denoised, points)


def test_one_image_per_class_is_its_own_estimate() -> None:
    points, labels = data()[0][:2], torch.tensor([0, 1])
    denoised = OptimalDenoiser(points, labels).denoise_classes(points + 0.5, torch.tensor(1.0))
    torch.testing.assert_close(denoised, points[None].expand(2, -1, -1, -1, -1))


def test_second_derivatives_are_finite_despite_the_padding() -> None:
    points, labels = data()
    denoiser = OptimalDenoiser(points, labels)
    x = (2 * some_images(1, (1, 2, 3), seed=4) - 1).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda y: denoiser.denoise_classes(y, torch.tensor(0.8)), (x,)
    )


def test_bad_data_is_refused() -> None:
    points, labels = data()
    with pytest.raises(ValueError, match="no image of class 1"):
        OptimalDenoiser(points[:2], torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="one label each"):
        OptimalDenoiser(points, labels[:3])
    for bad in (labels.double(), labels - 1, labels.tolist()):
        with pytest.raises(ValueError, match=r"^labels=.* must be \(N,\) int64"):
            OptimalDenoiser(points, bad)  # type: ignore[arg-type]


def test_oracle_satisfies_the_protocol() -> None:
    """The oracle's own estimate is the conjugate posterior mean for a single Gaussian."""
    oracle = MixtureDenoiser(torch.zeros(1, 1, 1, 2, 2) + 0.2, std=0.5)
    x = some_images(3)
    expected = (0.25 * x + 0.49 * 0.2) / (0.25 + 0.49)
    torch.testing.assert_close(oracle.denoise(x, torch.tensor(0.7)), expected)
