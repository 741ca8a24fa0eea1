"""Likelihood maximization: the update, the budget, and its derivative."""

import weakref
from dataclasses import replace
from math import inf, nan
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc import LikelihoodMaximizer, MaximizationConfig
from rdc.backward import ACTIVATION_BYTES
from rdc.denoiser import Preconditioning
from rdc.images import to_x
from tests.support.denoisers import random_denoiser
from tests.support.oracle import central_difference, some_images, two_classes

# A budget that does not bind: finite differences need a function without kinks nearby.
FREE = MaximizationConfig(steps=3, budget=0.5, step_size=0.01, momentum=0.7, draws=2)


def direction(images: torch.Tensor) -> torch.Tensor:
    return some_images(len(images), tuple(images.shape[1:]), seed=11) - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["momentum", "adam"])
@pytest.mark.parametrize("denoiser", [two_classes(), random_denoiser()], ids=["mixture", "unet"])
def test_exact_gradient_equals_finite_differences(denoiser, rule) -> None:
    """Through every step, second order, also through attention (float64)."""
    images = 0.3 + 0.4 * some_images(2, denoiser.image_shape)
    config = MaximizationConfig(**{**FREE.__dict__, "rule": rule, "step_size": 0.003})
    maximizer = LikelihoodMaximizer(denoiser, config)
    v = direction(images)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (maximizer(x) * v.flip(0)).sum()

    x = images.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, images, v, 1e-6)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


def test_central_difference_agrees_with_double_backward() -> None:
    denoiser = random_denoiser()
    images = some_images(2, denoiser.image_shape)

    def jacobian_product(second_order) -> torch.Tensor:
        maximizer = LikelihoodMaximizer(denoiser, FREE, second_order=second_order)
        x = images.clone().requires_grad_()
        return torch.autograd.grad((maximizer(x) * direction(images)).sum(), x)[0]

    exact, cheap = jacobian_product("double_backward"), jacobian_product("central_difference")
    cosine = torch.cosine_similarity(exact.flatten(), cheap.flatten(), dim=0)
    assert cosine > 0.9999
    assert (exact - cheap).norm() < 0.01 * exact.norm()


def test_bpda_has_the_same_image_and_the_identity_as_derivative() -> None:
    images = some_images(2)
    exact = LikelihoodMaximizer(two_classes(), FREE)
    bpda = LikelihoodMaximizer(two_classes(), FREE, gradient="bpda")
    x = images.clone().requires_grad_()
    moved = bpda(x)
    assert torch.equal(moved, exact(images))
    v = direction(images)
    torch.testing.assert_close(torch.autograd.grad((moved * v).sum(), x)[0], v)


def test_momentum_is_algorithm_1() -> None:
    """m <- mu m - g / mean|g|; x <- clip(x + gamma m), written out with plain autograd."""
    denoiser, images = two_classes(), some_images(2)
    config = MaximizationConfig(steps=3, budget=0.02, step_size=0.01, momentum=0.5, draws=1)
    maximizer = LikelihoodMaximizer(denoiser, config)
    x0 = to_x(images)
    normal, uniform = maximizer.noise.normal_and_uniform(x0, 3)
    x, m = x0.clone(), torch.zeros_like(x0)
    for n in range(3):
        sigma = 0.4 + 0.2 * uniform[0, n]
        y = x.clone().requires_grad_()
        error = denoiser.denoise(y + sigma * normal[:, n], sigma) - y
        (g,) = torch.autograd.grad((error.square().mean((1, 2, 3)) / sigma**2).sum(), y)
        m = 0.5 * m - g / g.abs().mean((1, 2, 3), keepdim=True)
        x = torch.clamp(x + 0.02 * m, x0 - 0.04, x0 + 0.04).clamp(-1, 1)
    torch.testing.assert_close(maximizer(images), (x + 1) / 2)


@pytest.mark.parametrize("denoiser", [two_classes(), random_denoiser()], ids=["mixture", "unet"])
def test_released_settings_are_torchs_adam(denoiser) -> None:
    """Five steps of torch.optim.Adam at 0.1 on [-1, 1], on the unweighted error, then one clip.

    All pixels are black or white: clipping every step would change most of them.
    """
    images = some_images(2, denoiser.image_shape).round()
    maximizer = LikelihoodMaximizer(denoiser, MaximizationConfig.released())
    x = to_x(images)
    normal, uniform = maximizer.noise.normal_and_uniform(x, 5)
    z = x.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.1)
    for n in range(5):
        sigma = 0.4 + 0.2 * uniform[0, n]
        error = denoiser.denoise(z + sigma * normal[:, n], sigma) - z
        adam.zero_grad()
        error.square().mean((1, 2, 3)).sum().backward()
        adam.step()
    expected = ((z.detach() + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(maximizer(images), expected, rtol=1e-6, atol=1e-6)


def test_likelihood_rises() -> None:
    """The log-density at the working noise level rises; the density is known in closed form."""
    denoiser, images = two_classes(), some_images(50)
    config = MaximizationConfig(steps=10, budget=0.2, step_size=0.02, momentum=0, draws=16)
    moved = LikelihoodMaximizer(denoiser, config)(images)

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return denoiser.log_density(to_x(x), 0.5).logsumexp(1)

    rise = log_density(moved) - log_density(images)
    assert (rise > 0).double().mean() > 0.95


@settings(max_examples=20, deadline=None)
@given(
    st.floats(1e-3, 0.5),
    st.floats(1e-3, 0.5),
    st.integers(0, 4),
    st.sampled_from(["momentum", "adam"]),
)
def test_budget_and_range_hold(budget: float, step_size: float, steps: int, rule) -> None:
    config = MaximizationConfig(rule=rule, steps=steps, budget=budget, step_size=step_size)
    images = some_images(3)
    moved = LikelihoodMaximizer(two_classes(), config)(images)
    assert (moved - images).abs().max() <= budget + 1e-12
    assert moved.min() >= 0 and moved.max() <= 1


def test_no_steps_is_the_identity() -> None:
    images = some_images(2)
    moved = LikelihoodMaximizer(two_classes(), MaximizationConfig(steps=0))(images)
    torch.testing.assert_close(moved, images)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_an_image_moves_alike_alone_and_in_a_batch(dtype, tolerance) -> None:
    denoiser = random_denoiser(dtype)
    images = some_images(5, denoiser.image_shape, dtype=dtype)
    maximizer = LikelihoodMaximizer(denoiser, FREE)
    alone = torch.cat([maximizer(image[None]) for image in images])
    torch.testing.assert_close(maximizer(images), alone, rtol=0, atol=tolerance)


def test_fresh_noise_moves_an_image_elsewhere_each_time() -> None:
    maximizer = LikelihoodMaximizer(two_classes(), FREE, noise="fresh")
    images = some_images(2)
    assert not torch.equal(maximizer(images), maximizer(images))


class Kept:
    """Holds one tensor for a graph, so that its death shows when the graph let go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(steps: int, images: torch.Tensor, denoiser) -> int:
    """Bytes that the graph of a maximization still holds for its backward pass when it is done."""
    config = MaximizationConfig(steps=steps, budget=0.5, step_size=0.001)
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Kept:
        holder = Kept(tensor)
        kept.add(holder)
        return holder

    x = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        moved = LikelihoodMaximizer(denoiser, config)(x)
    assert moved.requires_grad
    storages = {k.tensor.untyped_storage().data_ptr(): k.tensor.untyped_storage() for k in kept}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.slow
def test_memory_grows_by_states_alone(monkeypatch) -> None:
    """45 more steps keep a few images each, far less than one network call's activations.

    Where these do not fit into the memory for activations, that is.
    """
    monkeypatch.setitem(ACTIVATION_BYTES, "cpu", 0)
    denoiser = random_denoiser(torch.float32)
    images = some_images(4, denoiser.image_shape, dtype=torch.float32)
    image_bytes = images.numel() * 4
    per_step = (saved_bytes(50, images, denoiser) - saved_bytes(5, images, denoiser)) / 45
    assert per_step < 12 * image_bytes


@pytest.mark.parametrize(
    "bad",
    [{"rule": "newton"}, {"steps": -1}, {"budget": 0}, {"sigma_min": 0.9}, {"draws": 0},
     {"step_size": 0}, {"momentum": -1}, {"steps": 10**8}, {"budget": 8}, {"draws": 10**8},
     {"draws": 9000, "steps": 9000}, {"step_size": inf}, {"momentum": inf}, {"sigma_max": inf},
     {"sigma_min": 1e-310}, {"sigma_max": nan}, {"budget": nan}],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"MaximizationConfig: .*{next(iter(bad))}"):
        MaximizationConfig(**bad)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient='none'"):
        LikelihoodMaximizer(two_classes(), gradient="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="second_order='none'"):
        LikelihoodMaximizer(two_classes(), second_order="none")  # type: ignore[arg-type]


@pytest.mark.slow
def test_exact_gradient_under_autocast_is_close_to_that_in_single_precision() -> None:
    denoiser = random_denoiser(torch.float32)
    images = some_images(2, denoiser.image_shape, dtype=torch.float32)

    def gradient(half: bool) -> torch.Tensor:
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            moved = LikelihoodMaximizer(denoiser, FREE)(x)
        return torch.autograd.grad((moved * direction(images).float()).sum(), x)[0].flatten()

    assert torch.cosine_similarity(gradient(True), gradient(False), dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "fresh"])
@pytest.mark.parametrize("preconditioning", get_args(Preconditioning))
def test_inference_mode_gives_the_same_image(preconditioning, mode) -> None:
    denoiser = random_denoiser()
    denoiser.config = replace(denoiser.config, preconditioning=preconditioning)
    images = some_images(2, denoiser.image_shape)
    config = replace(FREE, draws=1)
    expected = LikelihoodMaximizer(denoiser, config, noise=mode)(images)
    with torch.inference_mode():
        found = LikelihoodMaximizer(denoiser, config, noise=mode)(images)
    torch.testing.assert_close(found, expected)
