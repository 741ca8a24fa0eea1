"""DiffHammer on purifiers whose draws and derivatives are known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from evaluation.attacks.apgd import apgd
from evaluation.attacks.diffhammer import Grafted, diffhammer, graft
from evaluation.attacks.eight_bits import OnGrid, rounded
from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from rdc import Defense
from rdc.noise import Noise
from rdc.norms import size
from tests.support.victims import IMAGES, Linear, labels_of

LABELS = labels_of(Linear(3))


class Adding(nn.Module):
    """Purifier: half the image, plus noise."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise("frozen")

    def forward(self, images: Tensor) -> Tensor:
        return images / 2 + 0.2 * self.noise.normal(images, 1)[:, 0]


class Turning(Adding):
    """Purifier: the image or its mirror image about 1/2, as a draw has it."""

    def forward(self, images: Tensor) -> Tensor:
        sign = self.noise.normal(images, 1)[:, 0].sum((1, 2, 3), keepdim=True).sign()
        return 0.5 + sign * (images - 0.5)


def test_graft_by_hand() -> None:
    """Two draws agree and are within reach; the third, far away, has next to no weight."""
    slopes = torch.tensor([[[3.0, 4.0]], [[4.0, 3.0]], [[-5.0, 0.0]]])
    margins = torch.tensor([[-0.1], [-0.1], [-9.0]])
    chosen, goal = graft(margins, slopes, eps=1.0)
    gains = torch.tensor([5.0, 4.8, -3.0])
    weights = (5 * (margins[:, 0] + gains)).sigmoid()
    assert chosen.item() == 0
    torch.testing.assert_close(goal[0], (weights[:, None] * slopes[:, 0]).sum(0) / weights.sum())


@pytest.mark.parametrize("max_rows", [256, 7, 1])
def test_gradient_of_a_linear_defense_is_exact(max_rows: int) -> None:
    """All draws have the same slope, that of the classifier times that of the purifier."""
    model = Defense(Adding(), Linear(2))
    labels, seeds = labels_of(Linear(2)), range(20)
    victim = Grafted(Expectation(model, draws=4, max_rows=max_rows), eps=0.1)
    judged, gradient = victim.gradient(IMAGES, labels, seeds=seeds)
    expected, exact = Expectation(model, draws=4).gradient(IMAGES, labels, seeds=seeds)
    torch.testing.assert_close(gradient, exact)
    for one, other in zip(judged, expected, strict=True):
        torch.testing.assert_close(one, other.to(one))


def test_breaks_about_half_of_the_draws_of_opposite_gradients() -> None:
    """Two modes of opposite gradients: no step lowers both, one of them is selected."""
    weight = torch.ones(16, dtype=torch.float64)

    def classifier(images: Tensor) -> Tensor:
        value = (images - 0.5).flatten(1) @ weight - 0.5
        return torch.stack([torch.zeros_like(value), value], 1)

    class Classifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return classifier(images)

    images = torch.full((6, 1, 4, 4), 0.5, dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.int64)
    victim = Expectation(Defense(Turning(), Classifier()), draws=16)
    found = diffhammer(victim, images, labels, eps=0.1, steps=5)
    wrong = victim.evaluate(found, labels, seeds=range(100, 106)).wrong
    assert (wrong >= 0.2).all() and (wrong <= 0.8).all()
    _, mean = victim.gradient(images, labels, seeds=range(6))
    assert mean.abs().max() < 1  # of 16 draws; a single one has slopes of 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_apgd_on_means(norm) -> None:
    model = Defense(Adding(), Linear(3))
    victim, eps = Expectation(model, draws=4), {"linf": 0.3, "l2": 0.7}[norm]
    harm = []
    for attack in (diffhammer, lambda *a, **o: apgd(*a, loss=margin, **o)):
        found = attack(victim, IMAGES, LABELS, eps=eps, norm=norm, steps=10)
        assert size(found - IMAGES, norm).max() <= eps + 1e-9
        harm.append(margin(Linear(3)(found / 2), LABELS).mean())
    assert harm[0] >= harm[1] - 0.05 * harm[1].abs()


def test_on_the_grid_of_8_bits_the_purifier_sees_nothing_else() -> None:
    class Seeing(Adding):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            return super().forward(images)

    seen: list[Tensor] = []
    victim = OnGrid(Defense(Seeing(), Linear(3)), draws=3)
    diffhammer(victim, rounded(IMAGES[:6]), LABELS[:6], eps=0.1, steps=3)
    assert len(seen) > 6
    for images in seen:
        torch.testing.assert_close(images, rounded(images), rtol=0, atol=1e-9)


def test_an_image_is_attacked_alike_alone_and_in_a_batch() -> None:
    victim = Expectation(Defense(Turning(), Linear(3)), draws=3, max_rows=7)
    together = diffhammer(victim, IMAGES[:6], LABELS[:6], eps=0.1, steps=3)
    alone = diffhammer(victim, IMAGES[4:5], LABELS[4:5], eps=0.1, steps=3, seeds=[4])
    torch.testing.assert_close(alone, together[4:5])


@pytest.mark.parametrize(
    "model",
    [
        Expectation(Defense(Adding(), Linear(3))),
        Expectation(Defense(Adding(), Linear(3), copies=2), draws=2),
        Expectation(Linear(3), draws=2),
    ],
)
def test_other_models_are_refused(model: Expectation) -> None:
    with pytest.raises(ValueError, match="at least 2 draws of a Defense with copies=1"):
        diffhammer(model, IMAGES, LABELS, eps=0.1)
