"""Class errors, losses and bounds against closed forms; chunks and batches change nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evaluation.attacks.losses import Loss, cross_entropy, dlr, margin, targeted_dlr
from rdc import (
    ClassifierConfig,
    Defense,
    Denoiser,
    DiffusionClassifier,
    Levels,
    LikelihoodMaximizer,
    MaximizationConfig,
    Noise,
)
from rdc.backward import ACTIVATION_BYTES
from rdc.images import to_x
from rdc.likelihood import chunk_rows, class_errors, class_losses, log_likelihood
from tests.support.denoisers import random_denoiser
from tests.support.oracle import MixtureDenoiser, central_difference, some_images, two_classes


def gaussian(mean: float = 0.2, std: float = 0.5) -> MixtureDenoiser:
    return MixtureDenoiser(torch.full((1, 1, 1, 2, 2), mean), std)


def test_errors_are_those_of_a_plain_loop() -> None:
    denoiser, x = random_denoiser(), to_x(some_images(2, (1, 8, 8)))
    sigmas = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    noise = Noise("fresh").normal(x, 3)
    got = class_errors(denoiser, x, sigmas, noise)
    for b in range(2):
        for t in range(3):
            noised = x[b : b + 1] + sigmas[t] * noise[b : b + 1, t]
            denoised = denoiser.denoise_classes(noised, sigmas[t])
            for y in range(3):
                expected = (x[b] - denoised[0, y]).square().sum()
                torch.testing.assert_close(got[b, y, t], expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_chunks_change_neither_losses_nor_gradients(
    batch: int, count: int, chunk: int, shared: bool
) -> None:
    denoiser, images = two_classes(), some_images(batch)
    levels = Levels.build(count=count, low=0.5, high=2)
    noise = Noise("frozen" if shared else "fresh").normal(images, count)

    def losses_and_gradient(chunk: int):
        x = to_x(images).requires_grad_()
        losses = class_losses(denoiser, x, levels, noise, chunk=chunk)
        return losses, torch.autograd.grad((losses**2).sum(), x)[0]

    for one, other in zip(losses_and_gradient(10_000), losses_and_gradient(chunk), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("conditioning", ["multihead", "label"])
def test_an_image_is_scored_alike_alone_and_in_a_batch(dtype, tolerance, conditioning) -> None:
    denoiser = random_denoiser(dtype, conditioning)
    x = to_x(some_images(5, (1, 8, 8), dtype=dtype))
    levels, noise = Levels.build(count=4, low=0.5, high=2), Noise("frozen").normal(x, 4)
    together = class_losses(denoiser, x, levels, noise)
    alone = torch.cat([class_losses(denoiser, image[None], levels, noise) for image in x])
    scale = together.abs().max()
    torch.testing.assert_close(together / scale, alone / scale, rtol=0, atol=tolerance)


def test_half_precision_images_have_losses_in_float32() -> None:
    denoiser = random_denoiser(torch.bfloat16)
    x = to_x(some_images(2, (1, 8, 8), dtype=torch.float32)).bfloat16()
    levels, noise = Levels.build(count=3, low=0.5, high=2), Noise("frozen").normal(x, 3)
    losses = class_losses(denoiser, x, levels, noise)
    exact = class_losses(denoiser.float(), x.float(), levels, noise.float())
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.05, atol=0)


def test_class_differences_share_their_noise() -> None:
    """Two classes with the same model have the same loss to the last bit."""
    means = torch.full((2, 1, 1, 2, 2), 0.1)
    x = to_x(some_images(3))
    levels, noise = Levels.build(count=3, low=0.5, high=2), Noise("fresh").normal(x, 3)
    losses = class_losses(MixtureDenoiser(means, 0.3), x, levels, noise)
    assert torch.equal(losses[:, 0], losses[:, 1])


def expected_error(denoiser: MixtureDenoiser, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E_n ||x - D(x + sigma n)||^2 of one Gaussian, by hand: (T,)."""
    variance = denoiser.std**2
    total = sigma.square() + variance
    bias = (x - denoiser.means[0, 0]).square().sum() * (sigma.square() / total).square()
    return bias + x.numel() * sigma.square() * (variance / total).square()


def test_errors_have_the_closed_form_mean_at_the_monte_carlo_rate() -> None:
    """Root mean square error over seeds falls as draws^-1/2."""
    denoiser, x = gaussian(), to_x(some_images(1))
    sigma = torch.tensor([0.8], dtype=torch.float64)
    exact = expected_error(denoiser, x[0], sigma)

    def deviation(draws: int) -> float:
        noise = Noise("fresh", seed=draws).normal(x.expand(400, -1, -1, -1), draws)
        errors = class_errors(denoiser, x.expand(400, -1, -1, -1), sigma.expand(draws), noise)
        return (errors[:, 0].mean(1) - exact).square().mean().sqrt().item()

    slope = math.log(deviation(2) / deviation(32)) / math.log(16)
    assert slope == pytest.approx(0.5, abs=0.07)


def quadrature_error(count: int) -> float:
    """Elbo integral of a Gaussian's exact errors against the KL divergence it stands for."""
    denoiser, x, low, high = gaussian(), to_x(some_images(1))[0], 0.2, 400.0
    levels = Levels.build(count=count, low=low, high=high)
    integral = (expected_error(denoiser, x, levels.sigmas) * levels.weights).sum().item()
    total, d = low**2 + denoiser.std**2, x.numel()
    bias = (x - denoiser.means[0, 0]).square().sum().item() / total
    divergence = 0.5 * (bias + d * (low**2 / total - 1 - math.log(low**2 / total)))
    return abs(integral - divergence)


def test_elbo_integral_is_the_divergence_and_converges_at_second_order() -> None:
    """integral_s^inf sigma^-3 E||x - D||^2 = KL(N(x, s^2) || p_s)."""
    assert quadrature_error(400) < 1e-3
    assert quadrature_error(40) / quadrature_error(80) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("oracle", "high"), [(gaussian(0.0, 0.5), 1.0), (two_classes(components=2), 80.0)]
)
def test_log_likelihood_is_the_smoothed_log_density(oracle: MixtureDenoiser, high: float) -> None:
    """-integral - KL - entropy = E_n log p_s(x + s n | y) for the exact denoiser.

    The Gaussian is the one that the prior assumes, so that its end at `high` is exact as well.
    """
    x, low = to_x(some_images(1)), 0.05
    levels = Levels.build(count=60, low=low, high=high, draws=4000)
    noise = Noise("frozen").normal(x, len(levels))
    bound = log_likelihood(oracle, x, levels, noise)
    samples = x[:, None] + low * Noise("frozen", seed=9).normal(x, 20_000)
    exact = oracle.log_density(samples.flatten(0, 1), low).view(1, 20_000, -1).mean(1)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.08)


def test_a_worse_denoiser_has_a_lower_bound() -> None:
    """The bound of a wrong model stays below the exact density of the right one."""
    right, wrong = gaussian(0.2), gaussian(0.6)
    x = 0.2 + 0.5 * Noise("frozen", seed=3).normal(some_images(1), 500)[0]
    levels = Levels.build(count=60, low=0.05, high=80, draws=2)
    noise = Noise("fresh").normal(x, len(levels))
    gap = log_likelihood(right, x, levels, noise) - log_likelihood(wrong, x, levels, noise)
    assert gap.mean() > 0.3


def test_log_likelihood_refuses_other_weights() -> None:
    x = to_x(some_images(1))
    levels = Levels.build(count=3, low=0.5, high=2, weighting="edm")
    with pytest.raises(ValueError, match="weighting='elbo'"):
        log_likelihood(gaussian(), x, levels, Noise("frozen").normal(x, 3))


def test_a_call_holds_as_many_pixels_whatever_their_size() -> None:
    small, large = torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 32, 32)
    assert chunk_rows(small) == 16 * chunk_rows(large) == 2**16 // 64


class Counting:
    """A denoiser that writes down which rows its network sees: (kind, sigma, label)."""

    class_names: tuple[str, ...] = ()

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.num_classes, self.image_shape = denoiser.num_classes, denoiser.image_shape
        self.rows_per_image = denoiser.rows_per_image
        self.seen: list[tuple[int, ...]] = []

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.denoiser.denoise(x, sigma)

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.seen += [()] * len(x)
        return self.denoiser.denoise_classes(x, sigma)

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        self.seen += [(label,) for label in labels.tolist()]
        return self.denoiser.denoise_class(x, sigma, labels)


IMAGES = some_images(3, (1, 8, 8))
LEVELS = Levels.build(count=4, low=0.5, high=2)
NOISE = Noise("fresh").normal(IMAGES, 4)


def dense(denoiser: Denoiser, x: Tensor) -> Tensor:
    """The class losses by plain autograd through `denoise_classes`, all rows at once."""
    sigma = LEVELS.sigmas.repeat(len(x))
    clean = x.repeat_interleave(4, dim=0)
    noised = clean + sigma[:, None, None, None] * NOISE.flatten(0, 1)
    errors = (denoiser.denoise_classes(noised, sigma) - clean[:, None]).square().sum((2, 3, 4))
    return torch.einsum("btk,t->bk", errors.unflatten(0, (len(x), 4)), LEVELS.weights)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 1, 7, 20])
@pytest.mark.parametrize("conditioning", ["multihead", "label"])
@pytest.mark.parametrize("loss", [margin, dlr, targeted_dlr, cross_entropy])
def test_gradient_of_a_loss_is_that_of_all_classes_at_once(chunk, conditioning, loss: Loss) -> None:
    denoiser = random_denoiser(conditioning=conditioning)
    aims = (torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1]))[: 2 if loss is targeted_dlr else 1]

    def gradient(losses) -> Tensor:
        x = to_x(IMAGES).requires_grad_()
        return torch.autograd.grad(loss(-losses(x), *aims).sum(), x)[0]

    found = gradient(lambda x: class_losses(denoiser, x, LEVELS, NOISE, chunk=chunk))
    expected = gradient(lambda x: dense(denoiser, x))
    torch.testing.assert_close(
        found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("chunk", [None, 5])
def test_only_the_classes_of_the_margin_run_again(monkeypatch, chunk: int | None) -> None:
    """Two of three classes for each image, and others for another image; none for a third.

    In several chunks, where no memory is left to keep their activations.
    """
    if chunk is not None:
        monkeypatch.setitem(ACTIVATION_BYTES, "cpu", -1)
    denoiser = Counting(random_denoiser(conditioning="label"))
    x = to_x(IMAGES).requires_grad_()
    losses = class_losses(denoiser, x, LEVELS, NOISE, chunk=chunk)
    assert sorted(denoiser.seen) == sorted([(0,), (1,), (2,)] * 12)
    denoiser.seen.clear()
    (losses[0, 0] - losses[0, 1] + losses[1, 2] - losses[1, 1]).backward()
    assert denoiser.seen == [(0,), (1,)] * 4 + [(1,), (2,)] * 4
    assert x.grad is not None and torch.equal(x.grad[2], torch.zeros_like(x[2]))


def test_all_classes_of_a_multihead_network_take_one_row(monkeypatch) -> None:
    denoiser = Counting(random_denoiser())
    x = to_x(IMAGES).requires_grad_()
    class_losses(denoiser, x, LEVELS, NOISE)[:, 0].sum().backward()
    assert denoiser.seen == [()] * 12  # kept for the backward pass
    denoiser.seen.clear()
    monkeypatch.setitem(ACTIVATION_BYTES, "cpu", -1)
    class_losses(denoiser, x, LEVELS, NOISE, chunk=5)[:, 0].sum().backward()
    assert denoiser.seen == [()] * 24


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("conditioning", ["multihead", "label"])
def test_losses_can_be_differentiated_twice(chunk, conditioning) -> None:
    """Guidance by a diffusion classifier needs that."""
    denoiser = random_denoiser(conditioning=conditioning)

    def product(losses) -> Tensor:
        x = to_x(IMAGES).requires_grad_()
        (first,) = torch.autograd.grad(
            margin(-losses(x), torch.zeros(3, dtype=torch.int64)).sum(), x, create_graph=True
        )
        return torch.autograd.grad((first * NOISE[:, 0]).sum(), x)[0]

    found = product(lambda x: class_losses(denoiser, x, LEVELS, NOISE, chunk=chunk))
    with sdpa_kernel(SDPBackend.MATH):  # of the attention kernels the one with two derivatives
        expected = product(lambda x: dense(denoiser, x))
    torch.testing.assert_close(
        found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_gradient_of_rdc_on_a_conditional_network_is_a_finite_difference(loss: Loss) -> None:
    denoiser, labels = random_denoiser(conditioning="label"), torch.tensor([0, 1, 2])
    maximizer = LikelihoodMaximizer(denoiser, MaximizationConfig(steps=2, momentum=0.5))
    model = Defense(maximizer, DiffusionClassifier(denoiser, ClassifierConfig(levels=3)))
    images = IMAGES.clone().requires_grad_()

    def value(images: Tensor) -> Tensor:
        return loss(model(images), labels).sum()

    (found,) = torch.autograd.grad(value(images), images)
    direction = some_images(3, (1, 8, 8), seed=4) - 0.5
    with torch.no_grad():
        expected = central_difference(value, IMAGES, direction, step=1e-6)
    torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-6, atol=0)


def test_a_row_per_class_needs_the_question_for_one_class() -> None:
    class Old(MixtureDenoiser):
        rows_per_image = 2

    with pytest.raises(
        TypeError, match=r"Old has rows_per_image=2.*denoise_class\(x, sigma, labels"
    ):
        class_errors(Old(torch.zeros(2, 1, 1, 2, 2), 0.3), some_images(1), LEVELS.sigmas, NOISE)


@pytest.mark.parametrize("rows", [1, 2])
def test_class_estimates_of_another_shape_are_refused(rows: int) -> None:
    """A single channel would broadcast over three."""

    class Gray(MixtureDenoiser):
        rows_per_image = rows

        def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x[:, None, :1].repeat(1, 2, 1, 1, 1)

        def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
            return x[:, :1]

    denoiser = Gray(torch.zeros(2, 1, 3, 2, 2), 0.3)
    levels = LEVELS.sigmas
    noise = torch.zeros(1, len(levels), 3, 2, 2)
    with pytest.raises(ValueError, match=r"denoiser: denoise_class.* 1, 2, 2\); return .* 3, 2, 2"):
        class_errors(denoiser, torch.zeros(2, 3, 2, 2), levels, noise)
