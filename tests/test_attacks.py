"""PGD against the optimum of a linear classifier, and what it promises about its images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import some_images
from torch import nn

from evaluation.attacks.pgd import margin, pgd
from evaluation.robustness import attack


class Linear(nn.Module):
    """Two classes on 1x4x4 images, with weights of very different size."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(2, 16, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight * torch.logspace(-2, 0, 16), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


IMAGES = 0.3 + 0.4 * some_images(20, (1, 4, 4))
LABELS = Linear()(IMAGES).argmax(1)


def smallest_eps(model: Linear) -> torch.Tensor:
    """|margin| / ||w_0 - w_1||_1 : the closed form for a linear classifier (B,)."""
    return -margin(model(IMAGES), LABELS) / (model.weight[0] - model.weight[1]).abs().sum()


@pytest.mark.parametrize("ratio", [0.99, 1.01])
def test_breaks_a_linear_classifier_at_its_optimum(ratio: float) -> None:
    """Just below the optimal budget nothing breaks, just above everything does."""
    model = Linear()
    for i, eps in enumerate((ratio * smallest_eps(model)).tolist()):
        image, label = IMAGES[i : i + 1], LABELS[i : i + 1]
        wrong = model(pgd(model, image, label, eps=eps)).argmax(1) != label
        assert wrong.item() == (ratio > 1)


def test_reaches_the_optimal_loss() -> None:
    model = Linear()
    attacked = pgd(model, IMAGES, LABELS, eps=0.1, generator=torch.Generator().manual_seed(0))
    best = margin(model(IMAGES), LABELS) + 0.1 * (model.weight[0] - model.weight[1]).abs().sum()
    torch.testing.assert_close(margin(model(attacked), LABELS), best)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.integers(1, 5), st.booleans())
def test_stays_in_ball_and_box(eps: float, steps: int, start: bool) -> None:
    generator = torch.Generator().manual_seed(1) if start else None
    attacked = pgd(Linear(), IMAGES, LABELS, eps=eps, steps=steps, generator=generator)
    assert (attacked - IMAGES).abs().max() <= eps + 1e-12
    assert attacked.min() >= 0 and attacked.max() <= 1


def test_more_steps_do_not_lower_the_loss_and_the_best_point_is_returned() -> None:
    """On a bumpy function a long walk passes its best point; that one comes back."""

    def bumpy(images: torch.Tensor) -> torch.Tensor:
        value = (40 * images.flatten(1)).sin().sum(1)
        return torch.stack([-value, value], 1)

    labels = torch.zeros(20, dtype=torch.int64)
    losses = [
        margin(bumpy(pgd(bumpy, IMAGES, labels, eps=0.2, steps=n, step_size=0.05)), labels)
        for n in (1, 5, 25)
    ]
    assert (losses[1] >= losses[0]).all() and (losses[2] >= losses[1]).all()
    assert (losses[0] >= margin(bumpy(IMAGES), labels)).all()


def test_an_image_is_attacked_alike_alone_and_in_a_batch() -> None:
    together = pgd(Linear(), IMAGES, LABELS, eps=0.1)
    alone = [pgd(Linear(), IMAGES[i : i + 1], LABELS[i : i + 1], eps=0.1) for i in range(20)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_margin_is_positive_exactly_where_misclassified() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 0.5, 0.0]])
    assert margin(logits, torch.tensor([0, 2, 1])).tolist() == [-1.0, 1.0, 0.5]


@pytest.mark.parametrize("bad", [{"eps": -0.1}, {"eps": 8}, {"eps": 0.1, "steps": 0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=list(bad)[-1]):
        pgd(Linear(), IMAGES, LABELS, **bad)


class Masked(Linear):
    """The same classifier with a gradient that points the wrong way."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return 2 * logits.detach() - logits


def test_the_worst_over_surrogates_undoes_a_masked_gradient() -> None:
    """Its own gradient finds nothing; the surrogate breaks it, and the union says so."""
    masked = Masked()
    eps = 2 * smallest_eps(masked).max().item()
    worst, right = attack(
        masked, IMAGES, LABELS, eps=eps, surrogates={"own": masked, "linear": Linear()}
    )
    assert right["none"].all() and right["own"].all() and not right["linear"].any()
    assert (masked(worst).argmax(1) != LABELS).all()
