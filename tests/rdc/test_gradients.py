"""Each gradient mode against float64 finite differences and against plain autograd."""

import pytest
import torch

from rdc.backward import ACTIVATION_BYTES, Room
from rdc.gradients import by_row, chain, gradient, straight_through
from tests.support.oracle import central_difference, some_images

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


OWNER = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
COTANGENT = torch.tensor([0.0, 2.0, 0.0, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)


def of_rows(copies: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (copies * (1 + rows[:, None, None, None])).sin().exp().sum((1, 2, 3))


class Watched:
    """`of_rows`, and which rows it was asked for."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, copies: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self.rows.append(rows.tolist())
        return of_rows(copies, rows)


def plainly(cotangent: torch.Tensor = COTANGENT) -> torch.Tensor:
    """The gradient by autograd through everything."""
    x = X.clone().requires_grad_()
    return torch.autograd.grad(of_rows(x[OWNER], torch.arange(9)), x, cotangent)[0]


@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 100])
def test_rows_have_the_values_and_the_gradient_of_autograd(chunk: int) -> None:
    x = X.clone().requires_grad_()
    values = by_row(of_rows, x, OWNER, chunk=chunk)
    torch.testing.assert_close(values, of_rows(X[OWNER], torch.arange(9)), rtol=1e-14, atol=0)
    found = torch.autograd.grad(values, x, COTANGENT)[0]
    torch.testing.assert_close(found, plainly(), rtol=1e-13, atol=0)
    assert torch.equal(found[2], torch.zeros_like(found[2]))


def test_no_rows_have_no_gradient() -> None:
    x = X[:0].clone().requires_grad_()
    values = by_row(of_rows, x, OWNER[:0], chunk=2)
    assert torch.autograd.grad(values.sum(), x)[0].shape == X[:0].shape


def test_only_rows_that_matter_run_again(monkeypatch) -> None:
    monkeypatch.setitem(ACTIVATION_BYTES, "cpu", -1)  # nothing is kept
    x, watched = X.clone().requires_grad_(), Watched()
    values = by_row(watched, x, OWNER, chunk=2)
    assert watched.rows == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    watched.rows.clear()
    torch.autograd.grad(values, x, COTANGENT)
    assert watched.rows == [[1, 3], [4]]


@pytest.mark.parametrize(
    ("room", "again"),
    [(2**30, []), (0, [[2, 3], [4, 5], [6, 7], [8]]), (-1, [[0, 1], [2, 3], [4, 5], [6, 7], [8]])],
)
def test_chunks_keep_their_activations_while_there_is_room(monkeypatch, room: int, again) -> None:
    monkeypatch.setitem(ACTIVATION_BYTES, "cpu", room)
    x, watched = X.clone().requires_grad_(), Watched()
    values = by_row(watched, x, OWNER, chunk=2)
    watched.rows.clear()
    (found,) = torch.autograd.grad(values.sum(), x)
    assert watched.rows == again
    torch.testing.assert_close(found, plainly(torch.ones(9).double()), rtol=1e-13, atol=0)


def test_a_chunk_is_kept_for_half_of_its_rows() -> None:
    x, watched = X.clone().requires_grad_(), Watched()
    values = by_row(watched, x, OWNER, chunk=3)
    watched.rows.clear()
    (found,) = torch.autograd.grad(values, x, COTANGENT)  # of rows 1, 3 and 4
    assert watched.rows == [[1]]
    torch.testing.assert_close(found, plainly(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("memory", "calls"), [(0, 2), (1, 2), (2**30, 1)])
def test_gradient_keeps_its_graph_where_memory_allows(memory: int, calls: int) -> None:
    seen = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return energy(x)

    x = X.clone().requires_grad_()
    value = (gradient(watched, x, room=Room(memory)) * V).sum()
    (found,) = torch.autograd.grad(value, x, retain_graph=True)
    expected = torch.autograd.grad(through_gradient(x), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    before = len(seen)
    assert torch.equal(torch.autograd.grad(value, x)[0], found)  # again, without what was kept
    assert (before, len(seen)) == (calls, calls + 1)


@pytest.mark.parametrize(
    ("cotangent", "again"),
    [(COTANGENT, [[1, 3, 4]]), (torch.ones_like(COTANGENT), []), (0 * COTANGENT, [])],
)
def test_what_one_chunk_kept_serves_where_most_rows_matter(cotangent, again) -> None:
    """A second backward pass, with retain_graph, finds nothing kept and runs the rows again."""
    x, watched = X.clone().requires_grad_(), Watched()
    values = by_row(watched, x, OWNER, chunk=9)
    for runs in (again, again or ([list(range(9))] if cotangent.any() else [])):
        watched.rows.clear()
        (found,) = torch.autograd.grad(values, x, cotangent, retain_graph=True)
        assert watched.rows == runs
        torch.testing.assert_close(found, plainly(cotangent), rtol=1e-13, atol=0)


def test_gradient_of_an_image_does_not_know_its_batch() -> None:
    """The gradient is equal bit for bit where the image's rows share a chunk."""

    def found(image: slice) -> torch.Tensor:
        x = X[image].clone().requires_grad_()
        rows = torch.arange(3).repeat(len(x))
        owner = torch.arange(len(x)).repeat_interleave(3)
        values = by_row(lambda copies, row: of_rows(copies, rows[row]), x, owner, chunk=9)
        return torch.autograd.grad(values.sum(), x)[0]

    alone = torch.cat([found(slice(i, i + 1)) for i in range(3)])
    assert torch.equal(found(slice(3)), alone)


@pytest.mark.parametrize("chunk", [2, 9])
def test_rows_can_be_differentiated_twice(chunk: int) -> None:
    """Second derivatives by x and by the cotangent are right, also where entries are zero."""

    def second(values) -> tuple[torch.Tensor, ...]:
        x, cotangent = X.clone().requires_grad_(), COTANGENT.clone().requires_grad_()
        (first,) = torch.autograd.grad(values(x), x, cotangent, create_graph=True)
        return torch.autograd.grad((first * V).sum(), (x, cotangent))

    found = second(lambda x: by_row(of_rows, x, OWNER, chunk=chunk))
    expected = second(lambda x: of_rows(x[OWNER], torch.arange(9)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (found[1] != 0).all()


def test_rows_without_gradients_run_once() -> None:
    watched = Watched()
    assert not by_row(watched, X, OWNER, chunk=4).requires_grad
    with torch.inference_mode():
        by_row(watched, X, OWNER, chunk=4)
    assert watched.rows == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_straight_through_has_the_value_and_the_identity() -> None:
    x = X.clone().requires_grad_()
    value = straight_through(lambda y: y.round() + 0.1, x)
    assert torch.equal(value, X.round() + 0.1)
    assert torch.equal(torch.autograd.grad((value * V).sum(), x)[0], V)


ONCE = {
    "gradient": lambda x: gradient(energy, x),
    "central difference": lambda x: gradient(energy, x, second_order="central_difference"),
    "chain": lambda x: chain(lambda k, s, c: (s[0].sin() * c[0],), 2, (x,), (x.cos(),))[0],
    "context": lambda x: chain(lambda k, s, c: (s[0] * c[0],), 2, (X,), (x,))[0],
    "straight through": lambda x: straight_through(lambda y: y * energy(y)[:, None, None, None], x),
}


@pytest.mark.parametrize("other_path", [0.0, 1.0])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)
def test_third_derivatives_are_refused(function, linear: bool, other_path: float) -> None:
    """Unsupported derivatives raise: a wrong derivative would look like robustness.

    They also raise if the incoming gradient is constant, or if x reaches the result another way.
    """
    x = X.clone().requires_grad_()
    value = (function(x) * V).sum() if linear else function(x).square().sum()
    value = value + other_path * x.pow(3).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad((first * V).sum(), x)


@pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)
def test_a_differentiable_backward_pass_has_the_same_gradient(function) -> None:
    x = X.clone().requires_grad_()
    found = [
        torch.autograd.grad((function(x) * V).sum(), x, create_graph=graph)[0]
        for graph in (False, True)
    ]
    assert torch.equal(*found)
    assert not found[0].requires_grad and found[1].requires_grad


MATRIX = some_images(4, (1, 2, 2), seed=11).float().flatten(1)


def multiplied(x: torch.Tensor) -> torch.Tensor:
    """A product that autocast rounds, in a function that is curved."""
    return (x.flatten(1).float() @ MATRIX).float().sin().square().sum(1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: gradient(multiplied, x).sum(),
        lambda x: gradient(multiplied, x, second_order="central_difference").sum(),
        lambda x: by_row(lambda c, _: multiplied(c), x, OWNER, chunk=2).sum(),
        lambda x: chain(lambda k, s, c: (s[0] * multiplied(s[0])[:, None],), 2, (x,))[0].sum(),
    ],
)
def test_backward_runs_again_in_the_precision_of_forward(function) -> None:
    def found(forward: bool, backward: bool) -> torch.Tensor:
        x = X.float().flatten(1).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            value = function(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(value, x)[0]

    for forward in (False, True):
        assert torch.equal(found(forward, False), found(forward, True))
    assert not torch.equal(found(True, True), found(False, False))
