"""Square: shapes and schedule by hand, progress without gradients, random models."""

import pytest
import torch

from evaluation.attacks import square as module
from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from evaluation.attacks.rng import generators, uniform
from evaluation.attacks.square import eta, shrinking, square
from rdc.norms import size
from tests.support.oracle import some_images
from tests.support.victims import IMAGES, LABELS, Linear, NoGradient, NoisyLogits, labels_of


def test_eta_by_hand() -> None:
    """Side 3: n = 1, 1 / 4 where M = 0 and 1 / 4 + 1 where M = 1; the second part is negative."""
    expected = [[0.25, -0.25, -0.25], [1.25, -0.25, -1.25], [0.25, -0.25, -0.25]]
    assert eta(3, torch.zeros(1)).tolist() == expected
    assert eta(1, torch.zeros(1)).tolist() == [[-1.0]]


def test_squares_shrink_as_in_the_paper() -> None:
    steps = [0, 10, 11, 51, 201, 1001, 2001, 4001, 6001, 8001]
    assert [shrinking(step / 10_000) for step in steps] == [1, 1, *(0.5**n for n in range(1, 9))]


def test_proposals_change_squares_only() -> None:
    """L-infinity: one square of one sign per channel. L2: at most two, and all of the budget."""
    images = some_images(200, (3, 9, 7))
    numbers = uniform(generators(range(200)), (8,), images)
    start = module._stripes(images, 0.05, generators(range(200)))
    torch.testing.assert_close((start - images).abs(), torch.full_like(images, 0.05))
    changed = module._recolor(images, start, 0.05, 3.0, numbers) != start
    assert changed.flatten(1).sum(1).max() <= 27
    assert changed.any(3).sum(2).max() <= 3 and changed.any(2).sum(2).max() <= 3
    assert changed.any(3).any(0).any(0).all() and changed.any(2).any(0).any(0).all()

    images = torch.full_like(images, 0.5)  # far from the box
    start = module._tiles(images, 0.5, generators(range(200)))
    torch.testing.assert_close(size(start - images, "l2"), torch.full((200,), 0.5).double())
    moved = module._move_mass(images, start, 0.5, 3.0, numbers)
    assert ((moved - start).abs() > 1e-9).flatten(1).sum(1).max() <= 2 * 27
    torch.testing.assert_close(size(moved - images, "l2"), torch.full((200,), 0.5).double())


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "share"), [("linf", 0.9), ("l2", 0.6)])
def test_progress_without_gradients(norm, share: float) -> None:
    """Most of the way to the optimum of a linear model that nobody can differentiate."""
    model = NoGradient()
    slope = model.weight[1] - model.weight[0]
    best = 0.02 * (slope.abs().sum() if norm == "linf" else slope.norm())
    attacked = square(model, IMAGES, LABELS, eps=0.02, norm=norm, queries=1000)
    with torch.no_grad():
        gain = margin(model(attacked), LABELS) - margin(model(IMAGES), LABELS)
        standing = model(attacked).argmax(1) == LABELS
    assert standing.sum() >= 10
    assert (gain[standing] / best).mean() >= share and (gain <= best + 1e-9).all()


def test_noise_does_not_fool_it() -> None:
    """A proposal and the point that it would replace see the same draws, also after new ones came:
    noise on the margin cancels, and the search goes where it goes without."""
    quiet = square(Linear(), IMAGES, LABELS, eps=0.02, queries=120)
    assert (labels_of(Linear(), quiet) == LABELS).all()  # nobody rests
    noisy = square(
        Expectation(NoisyLogits(std=0.3), draws=4), IMAGES, LABELS, eps=0.02, queries=120
    )
    torch.testing.assert_close(noisy, quiet)


@pytest.mark.parametrize("bad", [{"queries": 0}, {"share": 0.0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        square(Linear(), IMAGES, LABELS, eps=0.1, **bad)
