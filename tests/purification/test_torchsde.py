"""DiffPure through torchsde: the law of its solution, its randomness, and its gradients."""

import random
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adjoint import compare
from benchmarks.memory import peak_bytes
from purification import DiffusionPurifier, PurifierConfig, TorchsdePurifier
from purification.processes import Point
from rdc.noise import using_draws
from tests.support.oracle import MixtureDenoiser, central_difference, some_images, two_classes
from tests.support.tiny import tiny_denoiser

STD = 0.4


def gaussian(mean: float = 0.2, std: float = STD, size: int = 1) -> MixtureDenoiser:
    """Pixels N(mean, std^2) on [-1, 1]."""
    return MixtureDenoiser(torch.full((1, 1, 1, size, size), mean), std)


def gradient(purifier, images: Tensor, v: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    return torch.autograd.grad((purifier(x) * v).sum(), x)[0]


def slope(purifier) -> float:
    """d purified / d image, on Gaussian data the same everywhere."""
    image = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    return gradient(purifier, image, torch.ones_like(image)).item()


@pytest.mark.parametrize("dt", [0.05, 0.02])
def test_solution_has_the_slope_of_our_sde(dt: float) -> None:
    """Both are affine on Gaussian data, with Euler's product of factors on the same grid."""
    ours = DiffusionPurifier(gaussian(), PurifierConfig("sde", steps=round(0.1 / dt)))
    published = TorchsdePurifier(gaussian(), dt=dt, gradient="exact")
    assert slope(published) == pytest.approx(slope(ours), rel=1e-9)


def test_solution_approaches_the_law_of_the_sde_at_first_order() -> None:
    """E[purified | image] has the slope scale^2 s^2 / (scale^2 s^2 + deviation^2)."""
    start = Point.at(0.1)
    signal = start.scale**2 * STD**2
    exact = signal / (signal + start.deviation**2)

    def error(dt: float) -> float:
        return slope(TorchsdePurifier(gaussian(), dt=dt, gradient="exact")) - exact

    assert error(0.01) / error(0.005) == pytest.approx(2, rel=0.1)
    assert error(0.01) / error(0.0025) == pytest.approx(4, rel=0.1)


def test_solution_has_the_moments_of_our_sde() -> None:
    """Over 4096 independent pixels of one image: mean and variance within 4 standard errors."""
    denoiser = gaussian(size=64)
    image = torch.full((1, 1, 64, 64), 0.7, dtype=torch.float64)
    ours = DiffusionPurifier(denoiser, PurifierConfig("sde", steps=50))(image)
    published = TorchsdePurifier(denoiser, dt=0.002)(image)
    std = ours.std().item()
    assert std > 0.05
    assert abs(published.mean() - ours.mean()) < 4 * std * (2 / 4096) ** 0.5
    assert abs(published.var() / ours.var() - 1) < 4 * (4 / 4096) ** 0.5
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    normal = torch.tensor([NormalDist().inv_cdf(q) for q in quantiles.tolist()]).double()
    standard = (published.flatten() - published.mean()) / published.std()
    torch.testing.assert_close(standard.quantile(quantiles), normal, rtol=0, atol=0.08)


@pytest.mark.parametrize("mode", ["adjoint", "exact", "bpda"])
def test_modes_share_one_solution(mode) -> None:
    images = some_images(3)
    expected = TorchsdePurifier(two_classes(), dt=0.01)(images)
    assert torch.equal(TorchsdePurifier(two_classes(), dt=0.01, gradient=mode)(images), expected)
    x = images.clone().requires_grad_()
    assert torch.equal(TorchsdePurifier(two_classes(), dt=0.01, gradient=mode)(x), expected)


def test_exact_is_the_derivative() -> None:
    images = some_images(2)
    v = some_images(2, seed=11) - 0.5
    purifier = TorchsdePurifier(two_classes(), dt=0.01, gradient="exact")

    def value(x: Tensor) -> Tensor:
        return (purifier(x) * v.flip(0)).sum()

    got = (gradient(purifier, images, v.flip(0)) * v).sum()
    torch.testing.assert_close(got, central_difference(value, images, v), rtol=1e-7, atol=0)


def test_bpda_is_the_identity() -> None:
    images, v = some_images(2), some_images(2, seed=11)
    purifier = TorchsdePurifier(two_classes(), dt=0.02, gradient="bpda")
    torch.testing.assert_close(gradient(purifier, images, v), v)


def test_adjoint_has_an_error_that_falls_with_the_step_where_the_density_is_wide() -> None:
    images = some_images(6)

    def error(dt: float) -> Tensor:
        return compare(two_classes(std=0.5), images, t_star=0.1, dt=dt)["error"].median()

    errors = [error(dt) for dt in (0.01, 0.005, 0.0025)]
    assert errors[0] > errors[1] > errors[2] > 1e-6
    assert errors[0] / errors[2] > 2.5  # first order gives 4
    assert errors[2] < 0.02


def test_adjoint_fails_where_the_density_is_narrow() -> None:
    """Modes of width 0.02: going back, the error of the reconstruction grows."""
    found = compare(two_classes(std=0.02), some_images(6), t_star=0.1, dt=0.005)
    assert found["error"].median() > 0.1
    wide = compare(two_classes(std=0.5), some_images(6), t_star=0.1, dt=0.005)
    assert found["error"].median() > 5 * wide["error"].median()


def test_adjoint_needs_no_memory_for_steps() -> None:
    images = some_images(2, (1, 8, 8), dtype=torch.float32)

    def peak(dt: float, mode) -> int:
        return peak_bytes(TorchsdePurifier(tiny_denoiser(), dt=dt, gradient=mode), images)

    assert peak(0.05, "adjoint") == peak(0.025, "adjoint")
    assert peak(0.025, "exact") > 1.6 * peak(0.05, "exact")


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_a_seed_is_a_result_and_global_generators_are_left_alone(noise) -> None:
    images = some_images(2)

    def purified(seed: int) -> Tensor:
        purifier = TorchsdePurifier(two_classes(), dt=0.02, noise=noise, seed=seed)
        x = images.clone().requires_grad_()
        result = purifier(x)
        result.sum().backward()
        return result.detach()

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    assert torch.equal(purified(1), purified(1))
    assert not torch.allclose(purified(1), purified(2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert before[2] == random.getstate()


@pytest.mark.parametrize("mode", ["adjoint", "exact"])
def test_an_image_and_its_gradient_do_not_depend_on_the_batch(mode) -> None:
    images, v = some_images(3), some_images(3, seed=11)
    purifier = TorchsdePurifier(two_classes(), dt=0.02, gradient=mode)
    together = purifier(images), gradient(purifier, images, v)
    for i in (0, 2):
        one = slice(i, i + 1)
        torch.testing.assert_close(purifier(images[one]), together[0][one], rtol=0, atol=1e-12)
        alone = gradient(purifier, images[one], v[one])
        torch.testing.assert_close(alone, together[1][one], rtol=0, atol=1e-10)


def test_fresh_paths_are_each_images_own() -> None:
    images = some_images(1).repeat(5, 1, 1, 1)
    whole = TorchsdePurifier(two_classes(), dt=0.02, noise="fresh")(images)
    source = TorchsdePurifier(two_classes(), dt=0.02, noise="fresh")
    parts = torch.cat([source(part) for part in images.split([2, 3])])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 5


def test_copies_have_paths_of_their_own() -> None:
    images = some_images(2)
    purifier = TorchsdePurifier(two_classes(), dt=0.02)
    with using_draws(range(3)):
        rows = purifier(images.repeat_interleave(3, 0)).unflatten(0, (2, 3))
    torch.testing.assert_close(rows[:, 0], purifier(images), rtol=0, atol=1e-12)
    assert not torch.allclose(rows[:, 0], rows[:, 1])


def test_precisions_follow_the_same_path() -> None:
    denoiser = tiny_denoiser()
    images = some_images(1, denoiser.image_shape, dtype=torch.float32)
    single = TorchsdePurifier(denoiser, dt=0.02)(images)
    double = TorchsdePurifier(tiny_denoiser().double(), dt=0.02)(images.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["adjoint", "exact", "bpda"])
def test_half_precision_follows_the_same_path_in_as_many_steps(mode) -> None:
    """bfloat16 has no number between 0.9 and 0.9 + 1/1000: its own times would never end."""
    images = some_images(2, (1, 8, 8), dtype=torch.float32)
    single = TorchsdePurifier(tiny_denoiser(), 0.01, gradient=mode)(images)
    half = TorchsdePurifier(tiny_denoiser().bfloat16(), 0.01, gradient=mode)
    given = images.bfloat16().requires_grad_()
    purified = half(given)
    assert purified.dtype == torch.bfloat16
    torch.testing.assert_close(purified.float(), single, rtol=0, atol=0.05)
    purified.sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_no_image_is_purified_to_none(noise) -> None:
    images = some_images(1, (1, 8, 8), dtype=torch.float32)[:0]
    assert TorchsdePurifier(tiny_denoiser(), dt=0.05, noise=noise)(images).shape == images.shape


def test_other_sizes_are_resized_for_the_denoiser_and_back() -> None:
    images = some_images(1, (1, 3, 3))
    with pytest.raises(ValueError, match="images: 3x3 pixels, but the denoiser takes 4x4"):
        TorchsdePurifier(gaussian(size=4), dt=0.02)(images)
    purifier = TorchsdePurifier(gaussian(size=4), dt=0.02, resize=True)
    larger = F.interpolate(images, (4, 4), mode="bilinear", align_corners=False)
    back = F.interpolate(purifier(larger), (3, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(purifier(images), back)


def test_inference_mode_and_default_device_have_no_influence() -> None:
    purifier = TorchsdePurifier(tiny_denoiser(), dt=0.05)
    images = some_images(2, (1, 8, 8), dtype=torch.float32)
    with torch.inference_mode():
        purified = purifier(images)
    with torch.device("meta"):
        assert torch.equal(purified, purifier(images))
    assert torch.equal(purified, purifier(images))


@pytest.mark.parametrize(
    ("bad", "named"),
    [({"t_star": 0}, "t_star=0"), ({"t_star": 1.2}, "t_star=1.2"), ({"dt": 0}, "dt=0"),
     ({"dt": 0.2}, "dt=0.2"), ({"gradient": "full"}, "gradient='full'"),
     ({"noise": "loud"}, "noise='loud'")],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TorchsdePurifier(two_classes(), **bad)
