"""Exact laws of purified images of Gaussian data, with and without guidance."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import AGDM, GDMP, Guidance, Moment
from rdc import vp
from rdc.gradients import State
from rdc.images import to_pixels
from tests.support.gaussian import (
    COVARIANCE,
    MEAN,
    SHAPE,
    X_IN,
    GaussianDenoiser,
    Law,
    flow_law,
    jacobian,
    law,
    of_input,
    posterior_law,
)

EYE = torch.eye(2, dtype=torch.float64)
IMAGE = to_pixels(X_IN).view(1, *SHAPE)
SDE = PurifierConfig(t_star=0.3, steps=40)


def purifier(config: PurifierConfig, guidance=(), **options) -> DiffusionPurifier:
    return DiffusionPurifier(GaussianDenoiser(), config, guidance=guidance, **options)


def error(config: PurifierConfig) -> float:
    """Distance of the purifier's law from that of the process in continuous time."""
    points = config.build().points
    deterministic = config.process in ("ode", "heun", "ddim") and config.eta == 0
    exact = (flow_law if deterministic else posterior_law)(points[0], points[-1])
    return law(purifier(config)).error(exact)


@pytest.mark.parametrize(
    ("config", "steps", "ratio", "tolerance"),
    [
        (PurifierConfig("sde", t_star=0.3), 50, 2.0, 0.02),
        (PurifierConfig("ode", t_star=0.3), 50, 2.0, 0.03),
        (PurifierConfig("heun", t_star=0.3), 20, 4.0, 0.5),
        (PurifierConfig("ddpm", t_star=0.4), 100, 2.0, 0.12),
        (PurifierConfig("ddpm", t_star=0.4, variance="large"), 50, 2.0, 0.12),
        (PurifierConfig("ddim", t_star=0.4), 50, 2.0, 0.05),
        (PurifierConfig("ddim", t_star=0.4, eta=1.0), 100, 2.0, 0.12),
    ],
    ids=["sde", "ode", "heun", "ddpm", "ddpm-large", "ddim", "ddim-ancestral"],
)
def test_law_converges_to_the_exact_one(config, steps: int, ratio: float, tolerance: float) -> None:
    """Mean, slope and covariance; Euler's rules with order 1, Heun's with order 2."""
    errors = [error(replace(config, steps=steps * 2**i)) for i in range(3)]
    assert errors[0] < 0.03
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(ratio, abs=tolerance)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    "config",
    [
        PurifierConfig("sde", t_star=0.3, steps=200),
        PurifierConfig("ode", t_star=0.3, steps=200),
        PurifierConfig("ddim", t_star=0.4, steps=200, eta=0.5),
        PurifierConfig("heun", t_star=0.3, steps=40, churn=10.0),
    ],
    ids=lambda config: config.process,
)
def test_data_are_purified_to_data(config, rounds: int) -> None:
    """Images drawn from the model keep its law under every process."""
    got = law(purifier(replace(config, rounds=rounds)))
    covariance = got.of_image @ COVARIANCE @ got.of_image.T + got.covariance
    torch.testing.assert_close(got.mean(MEAN), MEAN, rtol=0, atol=5e-3)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=5e-3)


@pytest.mark.parametrize("process", ["sde", "ode", "ddpm", "ddim", "heun"])
def test_gradient_is_the_slope_of_the_law(process) -> None:
    """Jacobian and slope agree to rounding; the SDE's slope approaches sqrt(abar) K."""
    config = replace(SDE, process=process, steps=80)
    slope = law(purifier(config)).of_image
    torch.testing.assert_close(jacobian(purifier(config), IMAGE), slope, rtol=0, atol=1e-13)
    if process == "sde":
        point = config.build().points[0]
        k = (
            point.scale
            * COVARIANCE
            @ torch.linalg.inv(point.scale**2 * COVARIANCE + point.deviation**2 * EYE)
        )
        torch.testing.assert_close(slope, point.scale * k, rtol=0, atol=5e-3)


def test_without_forward_noise_the_image_itself_is_led_back() -> None:
    config = replace(SDE, process="ode", forward_noise=False)
    states = purifier(config).trajectory(IMAGE)
    torch.testing.assert_close(states[1].flatten(), X_IN)
    assert law(purifier(config)).covariance.abs().max() == 0


@pytest.mark.parametrize("variance", ["small", "large"])
def test_last_step_of_ddpm_is_the_estimate(variance) -> None:
    process = replace(SDE, process="ddpm", variance=variance).build()
    x, noise, x0 = (torch.full((1, *SHAPE), value).double() for value in (0.3, 1.0, 0.5))
    reached = process.step(len(process) - 1, x, noise, lambda x, point: x0)
    torch.testing.assert_close(reached, x0)


class Observed(Guidance):
    """The exact likelihood of an observation y = x0 + r n of the clean image, on Gaussian data."""

    y = torch.tensor([0.6, -0.5], dtype=torch.float64)
    r = 0.25

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        s, d = moment.point.scale, moment.point.deviation
        k = s * COVARIANCE @ torch.linalg.inv(s**2 * COVARIANCE + d**2 * EYE)
        estimate = MEAN + (x.flatten(1) - s * MEAN) @ k.T
        uncertain = self.r**2 * EYE + COVARIANCE - s * k @ COVARIANCE
        return ((self.y - estimate) @ torch.linalg.inv(uncertain).T @ k).view_as(x)

    def posterior(self, far) -> Law:
        """The law of x0 given the noised image and y, over the noise of the image."""
        prior = torch.linalg.inv(COVARIANCE)
        p = torch.linalg.inv(prior + (EYE / far.sigma**2) + EYE / self.r**2)
        offset = p @ (prior @ MEAN + self.y / self.r**2)
        return of_input(far, offset, p * far.scale / far.deviation**2, p)


@pytest.mark.parametrize(("process", "steps"), [("sde", 100), ("ddpm", 100)])
def test_exact_likelihood_gives_the_exact_posterior(process, steps: int) -> None:
    """Test the sign and the factors (beta, 1/2, sigma) with which a term enters."""
    term = Observed()
    config = PurifierConfig(process, t_star=0.4, steps=steps)
    exact = term.posterior(config.build().points[0])
    finer = replace(config, steps=2 * steps)
    coarse, fine = (law(purifier(c, [(1.0, term)])).error(exact) for c in (config, finer))
    assert fine < 6e-3
    assert coarse / fine == pytest.approx(2, abs=0.25)
    assert law(purifier(finer)).error(exact) > 0.1


class Linear(nn.Module):
    """Logits W x of an image x."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([[2.0, -1.0], [0.5, 1.5], [1.0, 0.3]], dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def euler_moments(config: PurifierConfig, pull) -> Law:
    """The guided SDE's moments, step by step, for G = matrix (a x_in + b n - x).

    `pull`: point -> (matrix (D, D), a, b), n being a unit draw.
    """
    points = config.build().points
    start = points[0]
    moments = Law(torch.zeros(2).double(), start.scale * EYE, start.deviation**2 * EYE)
    for here, after in pairwise(points):
        s, d = here.scale, here.deviation
        rate = vp.beta(torch.tensor(here.t, dtype=torch.float64)) * (here.t - after.t)
        precision = torch.linalg.inv(s**2 * COVARIANCE + d**2 * EYE)
        matrix, a, b = pull(here)
        turn = EYE + rate * (EYE / 2 - precision - matrix)
        fresh = rate * EYE + (rate * b) ** 2 * matrix @ matrix.T
        moments = Law(
            turn @ moments.offset + rate * s * precision @ MEAN,
            turn @ moments.of_image + rate * a * matrix,
            turn @ moments.covariance @ turn.T + fresh,
        )
    return moments


def quadratic(name: str):
    """A term whose G is linear, its pull at weight 1, and weights to try."""
    if name == "clean":
        term = GDMP(reference="clean", schedule="constant", reference_batch=1)
        return term, lambda point: (EYE, 1.0, 0.0), (1.0, 5.0, 20.0)  # 2 / D = 1
    if name == "noised":
        term = GDMP(eps=0.1, reference_batch=2)
        return term, lambda p: (EYE * p.sigma * 7.5, p.scale, p.deviation), (0.3, 1.0, 2.0)
    network = Linear()
    term = AGDM(network, class_weight=0.0)
    squared = network.weight.T @ network.weight / 2  # of x in [-1, 1]: 2 W^T W / 4
    return term, lambda point: (squared, 1.0, 0.0), (0.5, 2.0, 4.0)


@pytest.mark.parametrize("name", ["clean", "noised", "agdm"])
def test_quadratic_guidance_has_the_moments_of_a_linear_sde(name: str) -> None:
    term, pull, weights = quadratic(name)
    distances = [(law(purifier(SDE)).mean() - X_IN).norm().item()]
    for weight in weights:
        got = law(purifier(SDE, [(weight, term)]))

        def weighted(point, weight=weight):
            matrix, a, b = pull(point)
            return weight * matrix, a, b

        assert got.error(euler_moments(SDE, weighted)) < 1e-12
        distances.append((got.mean() - X_IN).norm().item())
    assert distances == sorted(distances, reverse=True)


def test_approximate_jacobians_are_approximate() -> None:
    """Exact, with detached guidance, of a coarser process, and straight-through: all different."""
    guidance = [(4.0, GDMP(reference="clean", schedule="constant", reference_batch=1))]
    modes = ("exact", "detached_guidance", "surrogate", "bpda")
    config = replace(SDE, surrogate_steps=10)
    found = {mode: jacobian(purifier(config, guidance, gradient=mode), IMAGE) for mode in modes}
    values = [purifier(config, guidance, gradient=mode)(IMAGE) for mode in modes]
    assert all(torch.equal(value, values[0]) for value in values)
    torch.testing.assert_close(found["exact"], law(purifier(config, guidance)).of_image)
    torch.testing.assert_close(found["bpda"], EYE)
    for i, one in enumerate(modes):
        for other in modes[i + 1 :]:
            assert (found[one] - found[other]).norm() > 0.03 * found["exact"].norm()


def test_attack_gradient_of_a_linear_defense_in_closed_form() -> None:
    """The gradient of w . purified is J^T w; the straight-through estimate is w."""
    variance = 0.1
    denoiser = GaussianDenoiser(covariance=variance * EYE)
    w = torch.tensor([1.0, -3.0], dtype=torch.float64)

    def gradient(mode) -> Tensor:
        x = IMAGE.clone().requires_grad_()
        purified = DiffusionPurifier(denoiser, SDE, gradient=mode)(x)
        return torch.autograd.grad(purified.flatten() @ w, x)[0].flatten()

    points = SDE.build().points
    slope = points[0].scale
    for here, after in pairwise(points):
        rate = vp.beta(torch.tensor(here.t, dtype=torch.float64)) * (here.t - after.t)
        slope = slope * (1 + rate * (0.5 - 1 / (here.scale**2 * variance + here.deviation**2)))
    torch.testing.assert_close(gradient("exact"), slope * w)
    torch.testing.assert_close(gradient("bpda"), w)
    kept = points[0].scale ** 2
    continuous = kept * variance / (kept * variance + points[0].deviation ** 2)
    assert float(slope) == pytest.approx(continuous, abs=0.01)
    assert continuous < 0.2
