"""Classifiers of noised images: the identities of exact denoisers, gradients, draws, patches."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rdc import (
    AmortizedDiffusionClassifier,
    ClassifierConfig,
    Denoiser,
    DenoiserConfig,
    DiffusionClassifier,
    MaximizationConfig,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
    UNetConfig,
)
from rdc.classifier import build_classifier
from rdc.images import to_x
from tests.support.denoisers import TINY, random_denoiser
from tests.support.oracle import central_difference, some_images, two_classes

POSTERIOR = ClassifierConfig(sigma_min=0.5, draws=4, estimator="posterior")


def optimal(count: int = 12, bandwidth: float = 0.2) -> OptimalDenoiser:
    """Three classes of smoothed random images of 1x2x2 pixels, float64."""
    x = to_x(some_images(count, seed=7))
    return OptimalDenoiser(x, torch.arange(count) % 3, bandwidth=bandwidth)


def test_class_estimates_differ_by_the_gradient_of_the_posterior() -> None:
    """D(x, s, y) - D(x, s) = s^2 grad log p(y | x, s), Bayes' rule in Tweedie's formula."""
    denoiser, sigma = optimal(), 0.6
    x = to_x(some_images(3)).requires_grad_()
    difference = denoiser.denoise_classes(x, sigma) - denoiser.denoise(x, sigma)[:, None]
    posterior = denoiser.class_log_posterior(x, sigma)
    for label in range(3):
        (score,) = torch.autograd.grad(posterior[:, label].sum(), x, retain_graph=True)
        torch.testing.assert_close(difference[:, label].detach(), sigma**2 * score)


def test_posterior_of_the_optimal_denoiser_is_bayes_rule() -> None:
    denoiser, x = optimal(bandwidth=0.3), to_x(some_images(3))
    density = denoiser.log_density(x, 0.5).exp()
    posterior = denoiser.class_log_posterior(x, 0.5).exp()
    torch.testing.assert_close(posterior, density / density.sum(1, keepdim=True))


def test_amortized_classifier_is_the_integral_of_the_losses() -> None:
    """Both are the diffusion classifier on [s, infinity) of an exact denoiser."""
    denoiser, images = optimal(bandwidth=0.3), some_images(4)
    low = 0.4
    losses = ClassifierConfig(levels=60, sigma_min=low, sigma_max=60, draws=300)
    expected = DiffusionClassifier(denoiser, losses)(images)
    found = AmortizedDiffusionClassifier(
        denoiser, ClassifierConfig(levels=1, sigma_min=low, draws=20_000, estimator="posterior")
    )(images)
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True),
        expected - expected.mean(1, keepdim=True),
        rtol=0.02, atol=0.03,
    )  # fmt: skip


def test_logits_are_the_mean_log_posterior_over_the_draws() -> None:
    denoiser, images = random_denoiser(conditioning="classifier"), some_images(3, (1, 8, 8))
    model = AmortizedDiffusionClassifier(denoiser, replace(POSTERIOR, temperature=2.0), seed=4)
    noise = model.noise.normal(to_x(images), 4)
    expected = torch.stack(
        [
            denoiser(to_x(images) + 0.5 * noise[:, draw], 0.5, outputs="logits").log_softmax(1)
            for draw in range(4)
        ]
    ).mean(0)
    torch.testing.assert_close(model(images), expected / 2)
    torch.testing.assert_close(model(images[1:2]), model(images)[1:2])


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_gradients_equal_finite_differences(noise) -> None:
    """The classifier alone, RDC around it, and the diffusion losses of its class estimates."""
    denoiser = random_denoiser(conditioning="classifier")
    images = 0.3 + 0.4 * some_images(2, (1, 8, 8))
    v = some_images(2, (1, 8, 8), seed=5) - 0.5
    rdc_config = RDCConfig(POSTERIOR, MaximizationConfig(steps=2, budget=0.1, step_size=0.01))

    def models() -> list:
        return [
            AmortizedDiffusionClassifier(denoiser, POSTERIOR, noise=noise, seed=3),
            RobustDiffusionClassifier(denoiser, rdc_config, noise=noise, seed=3),
            DiffusionClassifier(denoiser, ClassifierConfig(levels=2), noise=noise, seed=3),
        ]

    for which in range(3):

        def value(x: torch.Tensor, which=which) -> torch.Tensor:
            return (models()[which](x) * torch.tensor([1.0, -2.0, 0.5])).sum()

        x = images.clone().requires_grad_()
        (got,) = torch.autograd.grad(value(x), x)
        expected = central_difference(value, images, v, 1e-6)
        torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


def test_class_estimates_come_from_the_classifier() -> None:
    denoiser, sigma = random_denoiser(conditioning="classifier"), 0.7
    x = to_x(some_images(2, (1, 8, 8))).requires_grad_()
    estimates = denoiser.denoise_classes(x, sigma)
    posterior = denoiser.class_log_posterior(x, sigma)
    for label in range(3):
        (score,) = torch.autograd.grad(posterior[:, label].sum(), x, retain_graph=True)
        expected = denoiser.denoise(x, sigma) + sigma**2 * score
        torch.testing.assert_close(estimates[:, label], expected)
        labels = torch.full((2,), label)
        torch.testing.assert_close(denoiser.denoise_class(x, sigma, labels), expected)
    with torch.inference_mode():
        torch.testing.assert_close(denoiser.denoise_classes(x, sigma), estimates.detach())
    assert denoiser.rows_per_image == 3


def test_the_config_names_the_classifier() -> None:
    denoiser = random_denoiser(conditioning="classifier")
    assert type(build_classifier(denoiser, POSTERIOR)) is AmortizedDiffusionClassifier
    assert type(build_classifier(denoiser, ClassifierConfig())) is DiffusionClassifier
    with pytest.raises(ValueError, match="estimator='mean'"):
        ClassifierConfig(estimator="mean")  # type: ignore[arg-type]


def test_a_classifier_of_noised_images_needs_no_denoiser() -> None:
    whole, images = optimal(), some_images(2)
    part = SimpleNamespace(
        image_shape=whole.image_shape, class_log_posterior=whole.class_log_posterior
    )
    found = AmortizedDiffusionClassifier(part, POSTERIOR)(images)  # type: ignore[arg-type]
    assert torch.equal(found, AmortizedDiffusionClassifier(whole, POSTERIOR)(images))


def test_the_integral_of_losses_refuses_settings_of_the_posterior() -> None:
    with pytest.raises(ValueError, match=r"^config: estimator='posterior'.*Amortized"):
        DiffusionClassifier(optimal(), POSTERIOR)


def test_denoisers_without_a_classifier_are_refused() -> None:
    with pytest.raises(TypeError, match="class_log_posterior"):
        AmortizedDiffusionClassifier(two_classes())  # type: ignore[arg-type]
    model = AmortizedDiffusionClassifier(random_denoiser())
    with pytest.raises(ValueError, match="conditioning='classifier'"):
        model(some_images(1, (1, 8, 8)))


def test_saved_and_loaded_classifiers_agree(tmp_path) -> None:
    model = RobustDiffusionClassifier(
        random_denoiser(torch.float32, "classifier"), RDCConfig(classifier=POSTERIOR)
    )
    model.save_pretrained(tmp_path)
    again = RobustDiffusionClassifier.from_pretrained(tmp_path)
    images = some_images(2, (1, 8, 8), dtype=torch.float32)
    assert torch.equal(model(images), again(images))


def test_patches_shrink_the_trunk_and_keep_the_image() -> None:
    torch.manual_seed(0)
    config = UNetConfig(**{**TINY.__dict__, "patch": 2, "width_multipliers": (1, 2)})
    denoiser, sizes = Denoiser(DenoiserConfig(config)).eval(), []
    denoiser.network.stem.register_forward_hook(lambda module, x, y: sizes.append(y.shape[2:]))
    x = torch.randn(2, 1, 8, 8)
    assert denoiser.denoise_classes(x, 0.5).shape == (2, 3, 1, 8, 8)
    assert sizes == [(4, 4)]


def test_patches_keep_the_order_of_pixels() -> None:
    """A network whose layers pass the patches on unchanged returns its input."""
    config = UNetConfig(**{**TINY.__dict__, "conditioning": "none", "num_classes": 0,
                           "patch": 2, "head_blocks": 0})  # fmt: skip
    network = Denoiser(DenoiserConfig(config)).network
    weight = torch.zeros_like(network.head.out.weight)
    weight[:, :4, 1, 1] = torch.eye(4)
    network.head.out.weight.data = weight
    network.head.norm = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.arange(64.0).view(1, 1, 8, 8)
    network.encode = lambda x, embedding: (x, [])  # type: ignore[method-assign]
    unshuffled = torch.nn.functional.pixel_unshuffle(x, 2)
    padded = torch.cat([unshuffled, torch.zeros(1, 4, 4, 4)], 1)
    network.decode = lambda x, skips, embedding: padded  # type: ignore[method-assign]
    found = network(x, torch.zeros(1))
    torch.testing.assert_close(found, torch.nn.functional.silu(x))


@pytest.mark.parametrize(("patch", "why"), [(0, "patch=0"), (3, "image_size=8")])
def test_impossible_patches_are_refused(patch: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        UNetConfig(**{**TINY.__dict__, "patch": patch})
