"""Levels integrate what they say, weights have the densities they claim, draws are owned."""

import math
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rdc import vp
from rdc.levels import P_MEAN, P_STD, Levels, lognormal_density, nodes, weight
from rdc.noise import Noise
from tests.support.denoisers import small_rdc
from tests.support.oracle import some_images


def integral(function, low: float = 1e-5, high: float = 1e5, count: int = 200_000) -> float:
    sigma, width = nodes("log", count, low, high)
    return (function(sigma) * width).sum().item()


def test_densities_integrate_to_one() -> None:
    assert integral(lognormal_density) == pytest.approx(1, abs=1e-6)
    top = vp.sigma(torch.tensor(1.0, dtype=torch.float64)).item()
    assert integral(vp.sigma_density, 1e-5, top) == pytest.approx(1, abs=1e-4)


def test_edm_weight_is_lambda_times_the_density() -> None:
    sigma = torch.tensor([0.05, 0.3, 2.0], dtype=torch.float64)
    expected = lognormal_density(sigma) * (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(weight(sigma, "edm", sigma_data=0.5), expected)


def test_published_weight_has_the_released_slip() -> None:
    """exp(-(ln s - m)^2 / 2 * P^2) instead of / P^2: integrates to 1 / P^2."""

    def density(sigma):
        return weight(sigma, "published") * (0.5 * sigma) ** 2 / (sigma**2 + 0.25)

    assert integral(density) == pytest.approx(1 / P_STD**2, abs=1e-6)
    sigma = 0.3
    released = math.exp(-((math.log(sigma) - P_MEAN) ** 2) / 2 * P_STD**2)
    released /= sigma * P_STD * math.sqrt(2 * math.pi)
    assert density(torch.tensor(sigma, dtype=torch.float64)).item() == pytest.approx(released)


def test_published_levels_reproduce_the_released_sum() -> None:
    """sum_i w_i loss_i on linspace(1e-4, 3, 126), left ends (the released script's arithmetic)."""
    grid = [1e-4 + (3 - 1e-4) * i / 125 for i in range(126)]
    expected = []
    for a, b in pairwise(grid):
        p = math.exp(-((math.log(a) + 1.2) ** 2) / 2 * 1.2**2) / (a * 1.2 * math.sqrt(2 * math.pi))
        expected.append((a**2 + 0.25) / (0.5 * a) ** 2 * p * (b - a))
    levels = Levels.build(count=125, low=1e-4, high=3, spacing="uniform", weighting="published")
    torch.testing.assert_close(levels.weights, torch.tensor(expected, dtype=torch.float64))


def test_epsilon_weight_is_the_mean_error_in_the_noise_over_vp_time() -> None:
    """||noise error||^2 = ||x error||^2 / sigma^2, averaged over uniform times."""
    levels = Levels.build(count=50, low=0.05, high=5, spacing="vp", weighting="epsilon")
    t = vp.time(torch.tensor([0.05, 5], dtype=torch.float64))
    torch.testing.assert_close(
        levels.weights, (t[1] - t[0]) / 50 / levels.sigmas.square(), rtol=1e-9, atol=0
    )


def test_elbo_weight_integrates_to_half_the_signal_to_noise_ratio() -> None:
    """integral_s^inf sigma^-3 = 1 / (2 s^2): an estimate that ignores x costs ||x||^2 / 2 s^2."""
    assert integral(lambda s: weight(s, "elbo"), 0.5, 1e4) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize(
    ("spacing", "order"), [("uniform", 1), ("log", 2), ("lognormal", 2), ("vp", 2)]
)
def test_spacings_converge_at_their_order(spacing, order: int) -> None:
    """Halving the intervals divides the error by 2^order: of sigma on [0.3, 3]."""
    exact = (3**2 - 0.3**2) / 2

    def error(count: int) -> float:
        sigma, width = nodes(spacing, count, 0.3, 3)
        return abs((sigma * width).sum().item() - exact)

    assert error(40) / error(80) == pytest.approx(2**order, rel=0.05)


def test_draws_share_their_level() -> None:
    once = Levels.build(count=3, low=0.5, high=2)
    thrice = Levels.build(count=3, low=0.5, high=2, draws=3)
    torch.testing.assert_close(thrice.sigmas, once.sigmas.repeat(3))
    torch.testing.assert_close(thrice.weights.view(3, 3).sum(0), once.weights)


@pytest.mark.parametrize(
    "bad", [{"low": 0}, {"low": 3}, {"count": 0}, {"spacing": "cubic"}, {"weighting": "none"}]
)
def test_bad_levels_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(bad))}|noise levels"):
        Levels.build(**{"count": 4, "low": 0.5, "high": 2, **bad})


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 100))
def test_vp_time_inverts_sigma(sigma: float) -> None:
    value = torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(vp.sigma(vp.time(value)), value, rtol=1e-9, atol=0)


def test_vp_matches_its_definition() -> None:
    """scale = exp(-B/2), B by numerical integration of beta; (scale sigma)^2 = 1 - scale^2."""
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    integrated = torch.cumulative_trapezoid(vp.beta(t), t)[-1]
    one = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(vp.scale(one), (-integrated / 2).exp())
    torch.testing.assert_close((vp.scale(one) * vp.sigma(one)).square(), 1 - vp.scale(one).square())


def test_frozen_noise_depends_on_the_seed_alone() -> None:
    images = some_images(3)
    frozen = Noise("frozen", seed=5)
    assert torch.equal(frozen.normal(images, 4), frozen.normal(images[:1], 4))
    assert frozen.normal(images, 4).shape == (1, 4, 1, 2, 2)
    assert not torch.equal(frozen.normal(images, 4), Noise("frozen", seed=6).normal(images, 4))
    other_stream = Noise("frozen", seed=5, stream=1).normal(images, 4)
    assert not torch.equal(frozen.normal(images, 4), other_stream)


def test_frozen_noise_is_its_own_beside_another_thread() -> None:
    """Another thread overwrites the stored draws immediately after every call."""

    class Contested(Noise):
        theirs: Any = None
        _frozen: Any = property(lambda self: self.theirs, lambda self, entry: None)

    images, noise = some_images(3), Contested("frozen")
    noise.theirs = (("other",), Noise("frozen", seed=9).normal_and_uniform(images, 2))
    assert torch.equal(noise.normal(images, 4), Noise("frozen").normal(images, 4))


@pytest.mark.parametrize("mode", ["frozen", "fresh"])
def test_antithetic_draws_are_pairs_of_opposite_sign(mode) -> None:
    images = some_images(3)
    pairs = Noise(mode).normal(images, 6, antithetic=True)
    assert torch.equal(pairs[:, :3], Noise(mode).normal(images, 3))
    assert torch.equal(pairs[:, 3:], -pairs[:, :3])
    with pytest.raises(ValueError, match="count=3 must be even"):
        Noise(mode).normal(images, 3, antithetic=True)


def test_precisions_see_the_same_draws() -> None:
    images = some_images(1)
    double = Noise("frozen").normal(images, 4)
    assert torch.equal(double.float(), Noise("frozen").normal(images.float(), 4))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_fresh_noise_is_the_same_in_any_batches(seed: int, sizes: list[int]) -> None:
    images = some_images(sum(sizes))
    whole = Noise("fresh", seed=seed).normal(images, 2)
    source = Noise("fresh", seed=seed)
    parts = [source.normal(part, 2) for part in images.split(sizes)]
    assert torch.equal(whole, torch.cat(parts))


def test_fresh_noise_is_new_for_every_image_and_call() -> None:
    source, images = Noise("fresh"), some_images(2)
    first, second = source.normal(images, 1), source.normal(images, 1)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def fresh_draws(source: Noise, worker: int) -> list[float]:
    """Draws of a module's copy in another process."""
    return source.normal(some_images(1), 1).flatten().tolist()


class Drawing(Dataset):
    """Its items are the draws of one fresh source; every worker has a copy of it."""

    source = Noise("fresh")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.source.normal(some_images(1), 1).flatten()


@pytest.mark.parametrize("start", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_with_copies_of_a_module_draw_differently(start: str, processes) -> None:
    """A forked process has a copy of the memory, one of the fork server a pickled copy."""
    source = Noise("fresh")
    with (processes if start == "forkserver" else get_context(start)).Pool(2) as pool:
        jobs = [pool.apply_async(fresh_draws, (source, i)) for i in range(2)]
        found = [job.get() for job in jobs]
    found.append(fresh_draws(source, 2))
    assert found[2] == fresh_draws(Noise("fresh"), 2)
    assert len({draws[0] for draws in found}) == 3


@pytest.mark.slow
def test_workers_of_a_data_loader_draw_differently_and_repeatably() -> None:
    def epoch(seed: int) -> Tensor:
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(Drawing(), num_workers=2, generator=order)
        return torch.cat(list(loader))[:, 0]

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(first, again)
    assert len({*first.tolist(), *other.tolist()}) == 8


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    Noise("fresh").normal_and_uniform(some_images(2), 3)
    Noise("frozen").normal(some_images(2), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="noise='loud'"):
        Noise("loud")  # type: ignore[arg-type]


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1 must be 0 or more"):
        Noise("frozen", seed=-1)


@pytest.mark.parametrize("mode", ["frozen", "fresh"])
def test_no_images_get_no_draws(mode) -> None:
    normal, uniform = Noise(mode).normal_and_uniform(some_images(2)[:0], 3)
    assert len(normal) == len(uniform) == (1 if mode == "frozen" else 0)
    assert small_rdc(noise=mode)(some_images(2, (1, 8, 8))[:0]).shape == (0, 3)
