"""The diffusion classifier against exact Bayes, and RDC's gradient."""

import math

import pytest
import torch

from rdc import ClassifierConfig, DiffusionClassifier
from rdc.images import check_form, to_x
from rdc.noise import Noise
from tests.support.denoisers import small_rdc
from tests.support.oracle import central_difference, some_images, two_classes


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]


def exact_log_odds(oracle, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Log posterior odds of the image at noise `sigma`, E_n log p(x + s n | 0) / p(x + s n | 1)."""
    noise = Noise("frozen", seed=99).normal(images, 40_000)
    noised = to_x(images)[:, None] + sigma * noise
    density = oracle.log_density(noised.flatten(0, 1), sigma)
    return log_odds(density.view(len(images), -1, 2).mean(1))


def test_posterior_is_bayes() -> None:
    """With the exact denoiser the logits are the log-likelihoods at the lowest level, in nats."""
    oracle, images = two_classes(), some_images(4)
    config = ClassifierConfig(levels=60, sigma_min=0.4, sigma_max=60, draws=300)
    got = log_odds(DiffusionClassifier(oracle, config)(images))
    torch.testing.assert_close(got, exact_log_odds(oracle, images, 0.4), rtol=0.02, atol=0.02)


def test_posterior_converges_in_draws_at_the_monte_carlo_rate() -> None:
    """Root mean square error of the log-odds over 300 seeds falls as draws^-1/2."""
    oracle, image = two_classes(), some_images(1)

    def spread(draws: int) -> float:
        config = ClassifierConfig(levels=10, sigma_min=0.4, sigma_max=20, draws=draws)
        classifier = DiffusionClassifier(oracle, config, noise="fresh", seed=draws)
        return log_odds(classifier(image.expand(300, -1, -1, -1))).std().item()

    slope = math.log(spread(1) / spread(16)) / math.log(16)
    assert slope == pytest.approx(0.5, abs=0.07)


def test_posterior_converges_in_levels_at_second_order() -> None:
    """One Gaussian per class: the expected errors are known, only the quadrature is left."""
    oracle, image = two_classes(components=1), some_images(1)
    x, total = to_x(image)[0], oracle.std**2 + 0.5**2
    distance = (x - oracle.means[:, 0]).square().sum((1, 2, 3))
    exact = ((distance[1] - distance[0]) / (2 * total)).item()

    def error(levels: int) -> float:
        sigmas, weights = (
            getattr(
                ClassifierConfig(levels=levels, sigma_min=0.5, sigma_max=3000).build_levels(), n
            )
            for n in ("sigmas", "weights")
        )
        share = (sigmas.square() / (sigmas.square() + oracle.std**2)).square()
        return abs(((distance[1] - distance[0]) * (share * weights).sum()).item() - exact)

    assert error(40) / error(80) == pytest.approx(4, rel=0.1)


def test_temperature_divides_the_losses() -> None:
    images = some_images(2)
    one = DiffusionClassifier(two_classes(), ClassifierConfig())(images)
    ten = DiffusionClassifier(two_classes(), ClassifierConfig(temperature=10))(images)
    torch.testing.assert_close(one, 10 * ten)


def test_sigma_data_enters_the_edm_weight() -> None:
    weights = [
        ClassifierConfig(weighting="edm", levels=1, sigma_data=d).build_levels().weights.item()
        for d in (0.5, 0.8)
    ]
    sigma = ClassifierConfig(levels=1).build_levels().sigmas.item()
    lambdas = [(sigma**2 + d**2) / (sigma * d) ** 2 for d in (0.5, 0.8)]
    assert weights[0] / weights[1] == pytest.approx(lambdas[0] / lambdas[1])


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_rdc_gradient_equals_finite_differences(noise) -> None:
    """Through maximization and classification, with the draws of the forward pass (float64)."""
    images = 0.3 + 0.4 * some_images(2, (1, 8, 8))
    v = some_images(2, (1, 8, 8), seed=5) - 0.5

    def value(x: torch.Tensor) -> torch.Tensor:
        return (small_rdc(noise=noise, seed=3)(x) * torch.tensor([1.0, -2.0, 0.5])).sum()

    x = images.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, images, v, 1e-6)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


def test_modes_have_different_gradients() -> None:
    """Were they equal, one of the names would lie."""
    images = some_images(2, (1, 8, 8))

    def gradient(**options) -> torch.Tensor:
        x = images.clone().requires_grad_()
        return torch.autograd.grad(log_odds(small_rdc(**options)(x)).sum(), x)[0]

    exact, bpda = gradient(), gradient(gradient="bpda")
    assert (exact - bpda).norm() > 0.001 * exact.norm()
    close = gradient(second_order="central_difference")
    assert (exact - close).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_rdc_gives_the_same_logits_alone_and_in_a_batch(dtype, tolerance) -> None:
    model, images = small_rdc(dtype), some_images(5, (1, 8, 8), dtype=dtype)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    scale = together.abs().max()
    torch.testing.assert_close(together / scale, alone / scale, rtol=0, atol=tolerance)


def test_rdc_is_a_purifier_and_a_classifier() -> None:
    model, images = small_rdc(), some_images(2, (1, 8, 8))
    assert torch.equal(model(images), model.classifier(model.purifier(images)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), r"dtype torch\.uint8; .* \[0, 1\]"),
        (torch.zeros(1, 1, 16, 16), r"shape \(1, 1, 16, 16\), .* \(B, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), r"shape \(1, 3, 8, 8\), .* \(B, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\), .* \(B, 1, 8, 8\)"),
    ],
)
def test_modules_refuse_other_images(images: torch.Tensor, message: str) -> None:
    """RDC refuses in its maximizer, and the diffusion classifier alone by itself."""
    model = small_rdc(torch.float32)
    for module in (model, model.classifier, model.purifier, model.purifier.loss):
        with pytest.raises(ValueError, match=f"^images: {message}"):
            module(images)


def test_modules_never_wait_for_values() -> None:
    """Reading values would slow every attack step on a GPU; "meta" tensors have no values."""
    for shape in ((2, 1, 8, 8), (0, 1, 8, 8)):
        images = torch.zeros(shape, device="meta")
        assert check_form(images, (1, 8, 8)) is images


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"levels": 0}, {"sigma_min": 5}, {"draws": 0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(bad))}|noise levels"):
        ClassifierConfig(**bad)


def test_antithetic_draws_share_their_level_and_vary_less() -> None:
    """Over 300 seeds and at equal cost; the mean stays."""
    oracle, image = two_classes(), some_images(1)

    def estimates(antithetic: bool) -> torch.Tensor:
        config = ClassifierConfig(
            levels=10, sigma_min=0.4, sigma_max=20, draws=4, antithetic=antithetic
        )
        classifier = DiffusionClassifier(oracle, config, noise="fresh")
        return log_odds(classifier(image.expand(300, -1, -1, -1)))

    pairs, plain = estimates(True), estimates(False)
    assert pairs.std() < 0.8 * plain.std()
    assert (pairs.mean() - plain.mean()).abs() < 4 * plain.std() / 300**0.5


@pytest.mark.parametrize(
    "bad",
    [{"antithetic": True}, {"levels": 0}, {"levels": 10**8}, {"draws": 10**8},
     {"levels": 9000, "draws": 9000},
     {"sigma_min": 0}, {"sigma_min": 1e-310}, {"sigma_min": math.nan}, {"sigma_min": 3.0},
     {"sigma_max": math.inf}, {"temperature": 1e-300}, {"temperature": math.inf},
     {"temperature": 0}, {"sigma_data": math.inf}, {"sigma_data": 1e-310}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"ClassifierConfig: .*{next(iter(bad))}"):
        ClassifierConfig(**bad)
