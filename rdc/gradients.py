"""Exact gradients in bounded memory, and the approximations that the literature uses by name.

Derivatives are those of a function's tensor arguments alone: weights captured by a closure are
constants. Noise must be drawn before, and captured, so that backward sees exactly the draws of
forward. What backward runs once more, it runs in forward's precision (`torch.autocast`).
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Module = TypeVar("Module", bound=nn.Module)
SecondOrder = Literal["double_backward", "central_difference"]


def _leaf(x: Tensor) -> Tensor:
    """A copy outside any graph (and outside inference mode) that can be differentiated."""
    return x.detach().clone().requires_grad_()


def _precision(x: Tensor) -> Callable[[], AbstractContextManager]:
    """This moment's autocast, to be entered again."""
    kind = x.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return partial(torch.autocast, kind, dtype=dtype, enabled=enabled)


class _Final(torch.autograd.Function):
    """Returns `gradients` (the first `count` of `tensors`); differentiating them is an error."""

    @staticmethod
    def forward(ctx, name: str, count: int, *tensors: Tensor):
        ctx.name = name
        return tensors[:count]

    @staticmethod
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        raise RuntimeError(
            f"{ctx.name} is once_differentiable: its gradient was asked for with "
            "create_graph=True and then differentiated again, which is not supported; leave out "
            "create_graph, or take finite differences of the gradient"
        )


def _final(name: str) -> Callable[[Callable], Callable]:
    """Decorate a backward pass whose result cannot be differentiated: doing so raises.

    PyTorch's own `once_differentiable` raises only where the incoming gradient requires gradients.
    Where it does not, the dependence on the saved tensors would be dropped in silence.
    """

    def decorate(backward: Callable) -> Callable:
        @wraps(backward)
        def checked(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
            with torch.no_grad():
                found = backward(ctx, *cotangents)
            if not torch.is_grad_enabled():
                return found
            gradients = [each for each in found if each is not None]
            causes = (*ctx.saved_tensors, *cotangents)
            final = iter(_Final.apply(name, len(gradients), *gradients, *causes))  # type: ignore[arg-type]
            return tuple(None if each is None else next(final) for each in found)

        return checked

    return decorate


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: Callable[[Tensor], Tensor], second_order, step: float):
        ctx.function, ctx.second_order, ctx.step = function, second_order, step
        ctx.precision = _precision(x)
        ctx.save_for_backward(x)
        return _first(function, x)

    @staticmethod
    @_final("rdc.gradients.gradient")
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        with ctx.precision():
            if ctx.second_order == "double_backward":
                product = _second_by_graph(ctx.function, x, cotangent)
            else:
                product = _second_by_difference(ctx.function, x, cotangent, ctx.step)
        return product, None, None, None


def _first(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = _leaf(x)
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def _second_by_graph(function, x: Tensor, cotangent: Tensor) -> Tensor:
    # Fused attention kernels have no second derivative; the plain one does.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = _leaf(x)
        (first,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first, leaf, cotangent)[0]


def _second_by_difference(function, x: Tensor, cotangent: Tensor, step: float) -> Tensor:
    norm = cotangent.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    norm = norm.view(-1, *[1] * (x.ndim - 1))
    offset = step * cotangent / norm
    return (_first(function, x + offset) - _first(function, x - offset)) * (norm / (2 * step))


def gradient(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    second_order: SecondOrder = "double_backward",
    step: float = 0.03,
) -> Tensor:
    """d function(x).sum() / dx, itself differentiable once more, keeping only x in memory.

    `function` maps (B, ...) to one value per row, rows independent. The backward pass needs the
    Hessian-vector product H v. "double_backward" differentiates the gradient (exact, about nine
    forward passes); "central_difference" takes (g(x + h u) - g(x - h u)) |v| / 2h with u = v / |v|
    and h = `step`, an L2 distance (two gradients; error O(h^2), and rounding O(1/h)).
    """
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _first(function, x)
    return _Gradient.apply(x, function, second_order, step)  # type: ignore[return-value]


class _ByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: "OfRows", owner: Tensor, chunk: int):
        ctx.function, ctx.owner, ctx.chunk, ctx.kept = function, owner, chunk, None
        ctx.precision = _precision(x)
        ctx.save_for_backward(x)
        if len(owner) > chunk:
            with torch.no_grad():
                return _in_chunks(function, x, owner, chunk)
        ctx.kept = _graph(function, x[owner], _all(owner))
        return ctx.kept[1].detach()

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this once more
            with ctx.precision():
                found = _differentiable(ctx.function, x, ctx.owner, ctx.chunk, cotangent)
            return found, None, None, None
        rows = cotangent.nonzero()[:, 0].unique()
        kept, ctx.kept = ctx.kept, None  # its activations last for one use
        if 2 * len(rows) < len(ctx.owner):
            kept = None  # a row forward and back again costs what two kept rows cost
        elif kept is not None:
            rows = _all(ctx.owner)
        total = torch.zeros_like(x)
        for part in rows.split(ctx.chunk) if len(rows) else ():
            with ctx.precision():
                leaf, values = kept or _graph(ctx.function, x[ctx.owner[part]], part)
                (found,) = torch.autograd.grad(values, leaf, cotangent[part])
            _add(total, ctx.owner[part], found)
        return total, None, None, None


def _all(owner: Tensor) -> Tensor:
    return torch.arange(len(owner), device=owner.device)


def _in_chunks(function: "OfRows", x: Tensor, owner: Tensor, chunk: int) -> Tensor:
    return torch.cat([function(x[owner[rows]], rows) for rows in _all(owner).split(chunk)])


def _graph(function: "OfRows", copies: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Copies that can be differentiated, and the values of their rows."""
    with torch.enable_grad():
        leaf = _leaf(copies)
        return leaf, function(leaf, rows)


def _differentiable(function, x: Tensor, owner: Tensor, chunk: int, cotangent: Tensor) -> Tensor:
    # All rows: the derivative for a cotangent of 0 is not 0.
    with sdpa_kernel(SDPBackend.MATH):
        values = _in_chunks(function, x, owner, chunk)
        return torch.autograd.grad(values, x, cotangent, create_graph=True)[0]


def _add(total: Tensor, owner: Tensor, rows: Tensor) -> None:
    """total[owner[r]] += rows[r] for ascending owners; unlike index_add_, always in one order."""
    owners, counts = owner.unique_consecutive(return_counts=True)
    total[owners] += torch.stack([part.sum(0) for part in rows.split(counts.tolist())])


OfRows = Callable[[Tensor, Tensor], Tensor]
"""function(copies (M, ...) of what the rows see, their numbers (M,)) -> values (M, ...)"""


def by_row(function: OfRows, x: Tensor, owner: Tensor, *, chunk: int) -> Tensor:
    """The values of all rows (R, ...), `chunk` rows at a time, and their exact derivative.

    Row r sees x[owner[r]]; owner (R,) int64 ascends, and rows are independent. The derivative goes
    through the rows whose cotangent is not zero, and no others: these run once more, `chunk` at a
    time, so that the memory is that of one chunk. Where one chunk holds all rows, its activations
    are kept for the first backward pass that needs half of them. A derivative that is itself
    differentiated goes through all rows and keeps them all.
    """
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _in_chunks(function, x, owner, chunk)
    return _ByRow.apply(x, function, owner, chunk)  # type: ignore[return-value]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step: Callable, count: int, size: int, *tensors: Tensor):
        state, context = tensors[:size], tensors[size:]
        ctx.step, ctx.count, ctx.size = step, count, size
        # A step that draws, as a stochastic classifier does, knows from here for which copies.
        ctx.surroundings = copy_context()
        ctx.precision = _precision(tensors[0])
        states = []
        with torch.no_grad():
            for k in range(count):
                states.append(state)
                state = step(k, state, context)
        ctx.save_for_backward(*context, *(tensor for kept in states for tensor in kept))
        return state

    @staticmethod
    @_final("rdc.gradients.chain")
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        step, count, size = ctx.step, ctx.count, ctx.size
        saved = ctx.saved_tensors
        context, states = saved[: len(saved) - count * size], saved[len(saved) - count * size :]
        of_context: list[Tensor | None] = [None] * len(context)
        for k in reversed(range(count)):
            state = states[k * size : (k + 1) * size]
            with ctx.precision(), torch.enable_grad():
                leaves = [_leaf(t) if t.is_floating_point() else t for t in (*state, *context)]
                reached = ctx.surroundings.run(step, k, tuple(leaves[:size]), tuple(leaves[size:]))
                pairs = zip(reached, cotangents, strict=True)
                ends = [pair for pair in pairs if pair[0].requires_grad]
                inputs = [leaf for leaf in leaves if leaf.requires_grad]
                found = torch.autograd.grad(
                    [end for end, _ in ends], inputs, [cotangent for _, cotangent in ends],
                    allow_unused=True,
                )  # fmt: skip
            gradients = iter(found)
            flowing = [next(gradients) if leaf.requires_grad else None for leaf in leaves]
            cotangents = tuple(
                torch.zeros_like(kept) if gradient is None else gradient
                for kept, gradient in zip(state, flowing[:size], strict=True)
            )
            of_context = [
                gradient if total is None else total if gradient is None else total + gradient
                for total, gradient in zip(of_context, flowing[size:], strict=True)
            ]
        return None, None, None, *cotangents, *of_context


State = tuple[Tensor, ...]


def chain(
    step: Callable[[int, State, State], State], count: int, state: State, context: State = ()
) -> State:
    """state <- step(k, state, context) for k = 0 .. count - 1, and its exact derivative.

    What is kept are the states; the backward pass runs each step once more from the state that the
    forward pass had there. Gradients flow to the first state and to `context`, which every step
    sees. `step` must be a function of its arguments: its draws belong into closures.
    """
    tensors = (*state, *context)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        for k in range(count):
            state = step(k, state, context)
        return state
    return _Chain.apply(step, count, len(state), *tensors)  # type: ignore[return-value]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: Callable[[Tensor], Tensor]):
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    @_final("rdc.gradients.straight_through")
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        return cotangent, None


def straight_through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) with the identity as its derivative (BPDA, Athalye et al., ICML 2018)."""
    return _StraightThrough.apply(x, function)  # type: ignore[return-value]


def shallow_copy(module: Module) -> Module:
    """Shallow copy that shares submodules and weights; later attribute changes are independent."""
    copied = copy.copy(module)
    # `copy` leaves both the dictionaries in which PyTorch keeps a module's parts and hooks.
    kept = {name: copy.copy(it) for name, it in vars(copied).items() if isinstance(it, dict | set)}
    vars(copied).update(kept)
    return copied
