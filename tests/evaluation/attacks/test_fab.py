"""FAB finds the closest misclassified image: closed forms, curved boundaries, budgets."""

import pytest
import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation
from evaluation.attacks.fab import fab
from rdc.norms import size
from tests.support.victims import IMAGES, LABELS, Linear, NoisyLogits, labels_of, smallest_eps

both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@both_norms
@pytest.mark.parametrize("classes", [2, 5])
def test_distance_to_a_linear_boundary(norm, classes: int) -> None:
    """Within 0.1 % of the closed form, over all classes, without a budget."""
    model = Linear(classes)
    labels = labels_of(model)
    closest = fab(model, IMAGES, labels, eps=None, norm=norm, steps=20)
    assert (model(closest).argmax(1) != labels).all()
    ratio = size(closest - IMAGES, norm) / smallest_eps(model, IMAGES, labels, norm)
    inside = ((closest - 0.5).abs() < 0.49).flatten(1).all(1)  # else the box lengthens the way
    assert ratio.min() >= 1 - 1e-9 and ratio[inside].max() <= 1.001 and inside.sum() >= 15


def test_distance_where_the_box_binds() -> None:
    """Only one pixel counts much, and it is nearly white: the others must do the rest."""
    weight = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        rise = images.flatten(1) @ weight - 11.5
        return torch.stack([torch.zeros_like(rise), rise], 1)

    image = torch.tensor([0.95, 0.2, 0.2, 0.2], dtype=torch.float64).view(1, 1, 2, 2)
    label = torch.tensor([0])
    # The rise must be 1.4: 10 * .05 from the first pixel, 3 * .3 from the others.
    closest = fab(model, image, label, eps=None, norm="linf")
    torch.testing.assert_close(size(closest - image, "linf"), torch.tensor([0.3]).double(),
                               rtol=5e-3, atol=0)  # fmt: skip
    closest = fab(model, image, label, eps=None, norm="l2")
    expected = (torch.tensor([0.05**2 + 3 * 0.3**2]).double()).sqrt()
    torch.testing.assert_close(size(closest - image, "l2"), expected, rtol=5e-3, atol=0)


def test_distance_to_a_sphere() -> None:
    """A boundary that is curved: the radius minus the distance from the center, in L2."""

    def model(images: Tensor) -> Tensor:
        radius = (images - 0.5).flatten(1).norm(dim=1)
        return torch.stack([torch.full_like(radius, 0.4), radius], 1)

    images = 0.5 + 0.1 * (IMAGES - 0.5)
    labels = torch.zeros(20, dtype=torch.int64)
    closest = fab(model, images, labels, eps=None, norm="l2", steps=40)
    expected = 0.4 - (images - 0.5).flatten(1).norm(dim=1)
    torch.testing.assert_close(size(closest - images, "l2"), expected, rtol=1e-3, atol=0)


@both_norms
def test_keeps_to_the_budget(norm) -> None:
    """Images whose boundary is nearer than eps are misclassified within it; others come back."""
    model = Linear()
    distances = smallest_eps(model, IMAGES, LABELS, norm)
    eps = distances.median().item() * 1.001
    found = fab(model, IMAGES, LABELS, eps=eps, norm=norm, steps=20)
    near = distances < eps / 1.02
    far = distances > eps
    assert near.any() and far.any() and size(found - IMAGES, norm).max() <= eps
    assert (model(found).argmax(1) != LABELS)[near].all()
    assert torch.equal(found[far], IMAGES[far])


def test_misclassified_images_are_returned() -> None:
    assert torch.equal(fab(Linear(), IMAGES, 1 - LABELS, eps=0.3), IMAGES)
    assert torch.equal(fab(Linear(), IMAGES, 1 - LABELS, eps=None), IMAGES)


def test_restarts_find_what_the_first_run_misses() -> None:
    """A gradient that vanishes at the images: only a random start gets away from there."""

    def model(images: Tensor) -> Tensor:
        rise = (images - IMAGES[:4]).square().sum((1, 2, 3)) - 0.01
        return torch.stack([torch.zeros_like(rise), rise], 1)

    labels = torch.zeros(4, dtype=torch.int64)
    once = fab(model, IMAGES[:4], labels, eps=0.2, norm="l2", steps=20)
    assert torch.equal(once, IMAGES[:4])
    twice = fab(model, IMAGES[:4], labels, eps=0.2, norm="l2", steps=20, restarts=2)
    distance = size(twice - IMAGES[:4], "l2")
    torch.testing.assert_close(distance, torch.full_like(distance, 0.1), rtol=1e-3, atol=0)


def test_walks_along_the_boundary_of_the_mean() -> None:
    """Noise on the margin moves a linear boundary by its mean over the draws, and no image rests
    because one draw misclassifies it."""
    victim = Expectation(NoisyLogits(std=0.3), draws=9)
    found = fab(victim, IMAGES, LABELS, eps=0.3, norm="linf", steps=20)
    judged = [victim.evaluate(x, LABELS, seeds=range(100, 120)).wrong for x in (IMAGES, found)]
    assert ((judged[0] > 0) & (judged[0] < 0.5)).any()
    assert judged[0].mean() < 0.4 < judged[1].mean() < 0.65
