"""Budgets, boundaries and boxes: projections are inside, idempotent, and the closest points."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.attacks.rng import generators, normal, random_start, uniform
from rdc.choices import Norm
from rdc.norms import project, size, steepest, to_hyperplane
from tests.support.oracle import some_images

SHAPE = (2, 3, 2)
norms = pytest.mark.parametrize("norm", get_args(Norm))
seeds = st.integers(0, 2**32)


def noise(seed: int, count: int = 8, scale: float = 1.0) -> Tensor:
    like = torch.zeros(1, dtype=torch.float64)
    return scale * normal(generators(range(seed, seed + count)), SHAPE, like)


def corners(seed: int, count: int = 8) -> Tensor:
    """Images in the box, many pixels on its faces."""
    return (0.5 + noise(seed, count)).clamp(0, 1)


@norms
@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0, 1), st.floats(0.01, 3))
def test_projection_is_inside_and_idempotent(
    norm: Norm, seed: int, eps: float, scale: float
) -> None:
    images = corners(seed)
    points = images + noise(seed + 100, scale=scale)
    projected = project(points, images, eps, norm)
    assert size(projected - images, norm).max() <= eps + 1e-12
    assert projected.min() >= 0 and projected.max() <= 1
    again = project(projected, images, eps, norm)
    torch.testing.assert_close(again, projected, rtol=0, atol=1e-12)


@norms
@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.05, 1), st.floats(0.01, 3))
def test_projection_is_the_closest_point(norm: Norm, seed: int, eps: float, scale: float) -> None:
    """<point - projection, z - projection> <= 0 for all z of a convex set: its variational form."""
    images = corners(seed)
    points = images + noise(seed + 100, scale=scale)
    projected = project(points, images, eps, norm)
    for other in range(5):
        z = project(images + noise(seed + 200 + other, scale=scale), images, eps, norm)
        assert ((points - projected) * (z - projected)).sum((1, 2, 3)).max() <= 1e-9


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_keeps_precision_and_points_that_are_inside(norm: Norm, dtype) -> None:
    images = some_images(8, SHAPE).to(dtype)
    points = random_start(images, 0.1, norm, generators(range(8)))
    assert points.dtype == dtype
    torch.testing.assert_close(project(points, images, 0.1, norm), points)
    assert torch.equal(project(points, images, 0.0, norm), images)
    far = project(images + 100, images, 0.1, norm)
    assert far.dtype == dtype and size(far - images, norm).max() <= 0.1 + 1e-6


@norms
@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(-3, 3))
def test_hyperplane_is_reached_by_the_shortest_way(norm: Norm, seed: int, amount: float) -> None:
    """No point of the box is nearer and on the hyperplane; or the box does not reach it."""
    images, slope = corners(seed), noise(seed + 50)
    amounts = torch.full((8,), amount, dtype=torch.float64)
    found = to_hyperplane(images, slope, amounts, norm)
    assert found.min() >= 0 and found.max() <= 1
    reached = (slope * (found - images)).sum((1, 2, 3))
    most = (slope * (torch.where(slope * amount > 0, 1.0, 0.0) - images)).sum((1, 2, 3))
    expected = amounts.clamp(-most.abs(), most.abs())
    torch.testing.assert_close(reached, expected, rtol=1e-9, atol=1e-9)
    # In a smaller ball no point reaches as far: neither the best one there nor any other.
    smaller = 0.999 * size(found - images, norm)
    for way in (steepest(slope * amount, norm), noise(seed + 9)):
        z = images + way * (smaller / size(way, norm).clamp_min(1e-300))[:, None, None, None]
        gain = (slope * (z.clamp(0, 1) - images)).sum((1, 2, 3)) * (1 if amount > 0 else -1)
        assert (gain <= expected.abs() + 1e-9).all()


def test_hyperplane_by_hand() -> None:
    """Pixels .5 and .9 with slopes 1 and 2: the second one meets the box."""
    image = torch.tensor([[[[0.5, 0.9]]]], dtype=torch.float64)
    slope = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    amount = torch.tensor([0.4], dtype=torch.float64)
    linf = to_hyperplane(image, slope, amount, "linf")  # .2 + 2 * .1
    torch.testing.assert_close(linf, torch.tensor([[[[0.7, 1.0]]]], dtype=torch.float64))
    l2 = to_hyperplane(image, slope, amount / 4, "l2")  # s + 4 s = .1
    torch.testing.assert_close(l2, torch.tensor([[[[0.52, 0.94]]]], dtype=torch.float64))
    beyond = to_hyperplane(image, slope, 10 * amount, "l2")
    assert beyond.tolist() == [[[[1.0, 1.0]]]]
    back = to_hyperplane(image, slope, -amount, "linf")
    torch.testing.assert_close(back, image - 0.4 / 3)


@norms
def test_steepest_has_size_one_and_survives_tiny_gradients(norm: Norm) -> None:
    scales = torch.tensor([1e-200, 1e-9, 1.0, 1e200] * 2, dtype=torch.float64)
    gradient = noise(0) * scales[:, None, None, None]
    torch.testing.assert_close(size(steepest(gradient, norm), norm), torch.ones(8).double())
    assert torch.equal(steepest(0 * gradient, norm), torch.zeros_like(gradient))


@norms
def test_random_start_fills_the_ball(norm: Norm) -> None:
    """The distance of a uniform point, in units of eps and to the d-th power, is uniform."""
    images = torch.full((2000, *SHAPE), 0.5, dtype=torch.float64)
    starts = random_start(images, 0.2, norm, generators(range(2000)))
    share = (size(starts - images, norm) / 0.2) ** 12
    ordered = share.sort().values
    steps = torch.arange(2000) / 2000
    assert (ordered - steps).abs().max() < 1.95 / 2000**0.5  # Kolmogorov-Smirnov at 0.1 %
    assert abs((starts - images).mean()) < 0.005


def test_images_draw_by_themselves() -> None:
    like = torch.zeros(1)
    together = uniform(generators([4, 5]), (3,), like)
    assert torch.equal(together[1:], uniform(generators([5]), (3,), like))
