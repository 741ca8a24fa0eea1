"""Losses of attacks against values worked out by hand."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.attacks.losses import (
    cross_entropy,
    dlr,
    margin,
    targeted_dlr,
    targeted_margin,
)

LOGITS = torch.tensor([[5.0, 1.0, 3.0, -1.0], [0.0, 2.0, 8.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 3])
TARGETS = torch.tensor([2, 1])


def test_by_hand() -> None:
    """Sorted logits: 5 3 1 -1 with the label first, 8 4 2 0 with the label second."""
    assert margin(LOGITS, LABELS).tolist() == [-2.0, 4.0]
    assert targeted_margin(LOGITS, LABELS, TARGETS).tolist() == [-2.0, -2.0]
    assert dlr(LOGITS, LABELS).tolist() == [-2 / 4, 4 / 6]
    expected = torch.tensor([-2 / 5, -2 / 7], dtype=torch.float64)
    torch.testing.assert_close(targeted_dlr(LOGITS, LABELS, TARGETS), expected)
    expected = -LOGITS.softmax(1)[[0, 1], LABELS].log()
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)


def test_few_classes() -> None:
    """Three classes have no fourth logit, two have no third: there a margin takes the place."""
    three, two = LOGITS[:1, :3], LOGITS[:1, :2]
    label, target = torch.tensor([0]), torch.tensor([1])
    assert dlr(three, label).item() == -2 / 4
    assert targeted_dlr(three, label, target).item() == -4
    assert dlr(two, label).item() == margin(two, label).item() == -4
    assert targeted_dlr(two, label, target).item() == -4


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6])
def test_no_targeted_loss_is_constant(classes: int) -> None:
    """The loss has a gradient for every order of label and target among the logits."""
    ordered = torch.linspace(0, 3, classes, dtype=torch.float64).square()
    for label, target in permutations(range(classes), 2):
        logits = ordered.clone().requires_grad_()
        for loss in (targeted_dlr, targeted_margin):
            value = loss(logits[None], torch.tensor([label]), torch.tensor([target])).sum()
            (gradient,) = torch.autograd.grad(value, logits)
            assert gradient.abs().max() > 0.01


def test_equal_logits_have_finite_losses_and_gradients() -> None:
    for classes in (2, 3, 4, 10):
        logits = torch.zeros(1, classes, requires_grad=True)
        label, target = torch.tensor([0]), torch.tensor([1])
        for value in (dlr(logits, label), targeted_dlr(logits, label, target)):
            assert value.item() == 0
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert gradient.isfinite().all()


def test_classes_of_probability_0_are_as_if_there_were_none() -> None:
    """DLR losses over an infinite spread would be 0, and so would their gradients."""
    label, target = torch.tensor([0]), torch.tensor([1])
    for possible in (2, 3):
        few = torch.tensor([[3.0, 1.0, 2.0][:possible]])
        logits = torch.cat([few, torch.full((1, 5 - possible), -torch.inf)], 1).requires_grad_()
        for loss, *aims in ((dlr, label), (targeted_dlr, label, target)):
            value = loss(logits, *aims)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all() and gradient.abs().max() > 0.01


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0.1, 100))
def test_dlr_forgets_shift_and_scale(shift: float, scale: float) -> None:
    changed = scale * LOGITS + shift
    torch.testing.assert_close(dlr(changed, LABELS), dlr(LOGITS, LABELS))
    expected = targeted_dlr(LOGITS, LABELS, TARGETS)
    torch.testing.assert_close(targeted_dlr(changed, LABELS, TARGETS), expected)


@pytest.mark.parametrize("loss", [margin, dlr])
def test_positive_exactly_where_misclassified(loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 5, generator=generator)
    labels = torch.randint(5, (100,), generator=generator)
    assert torch.equal(loss(logits, labels) > 0, logits.argmax(1) != labels)
