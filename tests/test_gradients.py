"""Each gradient mode against float64 finite differences and against plain autograd."""

import pytest
import torch
from oracle import central_difference, some_images

from rdc.gradients import gradient, recompute, straight_through

X = some_images(3)
V = some_images(3, seed=7) - 0.5


def energy(x: torch.Tensor) -> torch.Tensor:
    """A smooth function of each row with a full Hessian: (B,)."""
    return (x.flatten(1).sin().sum(1) * x.flatten(1).square().sum(1)).exp()


def through_gradient(x: torch.Tensor, **options) -> torch.Tensor:
    return (gradient(energy, x, **options) * V).sum()


def test_gradient_is_autograds() -> None:
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(x).sum(), x)
    assert torch.equal(gradient(energy, X), expected)
    assert torch.equal(gradient(energy, x).detach(), expected)


def test_double_backward_equals_finite_differences() -> None:
    x = X.clone().requires_grad_()
    (product,) = torch.autograd.grad(through_gradient(x), x)
    expected = central_difference(through_gradient, X, V)
    torch.testing.assert_close((product * V).sum(), expected, rtol=1e-7, atol=0)


def test_central_difference_approaches_double_backward_at_second_order() -> None:
    x = X.clone().requires_grad_()
    (exact,) = torch.autograd.grad(through_gradient(x), x)

    def error(step: float) -> float:
        value = through_gradient(x, second_order="central_difference", step=step)
        return (torch.autograd.grad(value, x)[0] - exact).norm().item()

    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.05)
    assert error(0.001) < 1e-4 * exact.norm().item()


def test_central_difference_of_nothing_is_nothing() -> None:
    """A zero cotangent (an image whose loss is flat) gives zero, not 0/0."""
    x = X.clone().requires_grad_()
    value = (gradient(energy, x, second_order="central_difference") * 0).sum()
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros_like(X))


def test_gradient_works_under_no_grad_and_inference_mode() -> None:
    expected = gradient(energy, X)
    with torch.no_grad():
        assert torch.equal(gradient(energy, X.clone().requires_grad_()), expected)
    with torch.inference_mode():
        assert torch.equal(gradient(energy, X), expected)


def test_recompute_is_bit_identical_and_runs_twice() -> None:
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return energy(x)

    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad((energy(x) ** 2).sum(), x)
    value = recompute(counted, x)
    assert torch.equal(value, energy(X))
    assert torch.equal(torch.autograd.grad((value**2).sum(), x)[0], expected)
    assert calls == [False, True]


def test_recompute_without_gradients_runs_once() -> None:
    assert not recompute(energy, X).requires_grad


def test_straight_through_has_the_value_and_the_identity() -> None:
    x = X.clone().requires_grad_()
    value = straight_through(lambda y: y.round() + 0.1, x)
    assert torch.equal(value, X.round() + 0.1)
    assert torch.equal(torch.autograd.grad((value * V).sum(), x)[0], V)


@pytest.mark.parametrize("function", [gradient, recompute, straight_through])
def test_third_derivatives_are_refused(function) -> None:
    """What is not supported raises: a wrong derivative would look like robustness."""
    x = X.clone().requires_grad_()
    if function is gradient:
        value = function(energy, x)
    else:
        value = function(lambda y: y * energy(y)[:, None, None, None], x)
    (first,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|not have been used in the graph"):
        torch.autograd.grad(first.sum(), x)
