"""Exact gradients in bounded memory, and the approximations that the literature uses by name.

Derivatives are those of a function's tensor arguments alone: weights captured by a closure are
constants. Noise must be drawn before, and captured, so that backward sees exactly the draws of
forward. Recomputation in backward has the autocast settings of forward.
"""

import copy
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rdc.backward import Room, activation_bytes, counting_saved_bytes, final, leaf_of, precision_of
from rdc.second_order import constant_weights

Module = TypeVar("Module", bound=nn.Module)
SecondOrder = Literal["double_backward", "central_difference"]

OfBatch = Callable[[Tensor], Tensor]
"""(B, ...) -> (B,), rows independent"""
OfRows = Callable[[Tensor, Tensor], Tensor]
"""inputs (M, ...) of M rows, their numbers (M,) -> values (M, ...)"""


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: OfBatch, second_order: str, step: float, room: Room):
        ctx.function, ctx.second_order, ctx.step = function, second_order, step
        ctx.precision, ctx.kept = precision_of(x), None
        ctx.save_for_backward(x)
        if second_order == "central_difference":
            return _first(function, x)
        made = room.run(partial(_first_with_graph, function, x))
        ctx.kept = made if room.fits else None
        return _first(function, x) if made is None else made[1].detach()

    @staticmethod
    @final("rdc.gradients.gradient")
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # a graph serves once
        with ctx.precision():
            if ctx.second_order == "central_difference":
                product = _second_by_difference(ctx.function, x, cotangent, ctx.step)
            else:
                leaf, first = kept or _first_with_graph(ctx.function, x)
                product = torch.autograd.grad(first, leaf, cotangent)[0]
        return product, None, None, None, None


def _first(function: OfBatch, x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = leaf_of(x)
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def _first_with_graph(function: OfBatch, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf, and the gradient by it, which can be differentiated."""
    # Fused attention kernels have no second derivative; the plain one does.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), constant_weights():
        leaf = leaf_of(x)
        return leaf, torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)[0]


def _second_by_difference(function: OfBatch, x: Tensor, cotangent: Tensor, step: float) -> Tensor:
    norm = cotangent.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    norm = norm.view(-1, *[1] * (x.ndim - 1))
    offset = step * cotangent / norm
    return (_first(function, x + offset) - _first(function, x - offset)) * (norm / (2 * step))


def gradient(
    function: OfBatch,
    x: Tensor,
    *,
    second_order: SecondOrder = "double_backward",
    step: float = 0.03,
    room: Room | None = None,
) -> Tensor:
    """d function(x).sum() / dx, itself differentiable once more.

    `function` maps (B, ...) to one value per row, rows independent. The backward pass needs the
    Hessian-vector product H v. "double_backward" differentiates the gradient (exact);
    "central_difference" takes (g(x + h u) - g(x - h u)) |v| / 2h with u = v / |v| and h = `step`,
    an L2 distance (two gradients; error O(h^2), and rounding O(1/h)).

    room: for activations that are kept for the backward pass of "double_backward". Where they do
        not fit, x alone is kept and the gradient is computed again.
    """
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _first(function, x)
    return _Gradient.apply(x, function, second_order, step, room or Room(0))  # type: ignore[return-value]


class _ByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: OfRows, source: Tensor, chunk: int):
        ctx.function, ctx.source, ctx.chunk = function, source, chunk
        ctx.precision, ctx.kept = precision_of(x), []
        ctx.save_for_backward(x)
        found, room, size = [], activation_bytes(x), None
        for rows in _numbers(source).split(chunk):
            if room < 0:
                found.append(function(x[source[rows]], rows))
                continue
            run = partial(_with_graph, function, x[source[rows]], rows)
            if size is None and len(source) > chunk:  # of the first of several chunks
                kept, size = counting_saved_bytes(run)
            else:
                kept = run()
            room -= size or 0
            ctx.kept.append((rows, *kept))
            found.append(kept[1].detach())
        return torch.cat(found)

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the result will be differentiated once more
            with ctx.precision():
                found = _differentiable(ctx.function, x, ctx.source, ctx.chunk, cotangent)
            return found, None, None, None
        needed = cotangent.flatten(1).any(1) if cotangent.ndim > 1 else cotangent != 0
        total = torch.zeros_like(x)
        while ctx.kept:  # whose activations last for one use
            rows, leaf, values = ctx.kept.pop(0)
            # A row forward and back again costs what two kept rows cost.
            if 2 * needed[rows].sum() >= len(rows):
                with ctx.precision():
                    (found,) = torch.autograd.grad(values, leaf, cotangent[rows])
                _add(total, ctx.source[rows], found)
                needed[rows] = False
        for rows in needed.nonzero()[:, 0].split(ctx.chunk) if needed.any() else ():
            with ctx.precision():
                leaf, values = _with_graph(ctx.function, x[ctx.source[rows]], rows)
                found = torch.autograd.grad(values, leaf, cotangent[rows])[0]
            _add(total, ctx.source[rows], found)
        return total, None, None, None


def _numbers(source: Tensor) -> Tensor:
    return torch.arange(len(source), device=source.device)


def _in_chunks(function: OfRows, x: Tensor, source: Tensor, chunk: int) -> Tensor:
    return torch.cat([function(x[source[rows]], rows) for rows in _numbers(source).split(chunk)])


def _with_graph(function: OfRows, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs that can be differentiated, and the values of their rows."""
    with torch.enable_grad():
        leaf = leaf_of(inputs)
        return leaf, function(leaf, rows)


def _differentiable(
    function: OfRows, x: Tensor, source: Tensor, chunk: int, cotangent: Tensor
) -> Tensor:
    # All rows: the derivative for a cotangent of 0 is not 0.
    with sdpa_kernel(SDPBackend.MATH):
        values = _in_chunks(function, x, source, chunk)
        return torch.autograd.grad(values, x, cotangent, create_graph=True)[0]


def _add(total: Tensor, source: Tensor, rows: Tensor) -> None:
    """total[source[r]] += rows[r] for ascending sources; unlike index_add_, in one fixed order."""
    if not len(rows):
        return  # of which there is nothing to stack
    sources, counts = source.unique_consecutive(return_counts=True)
    total[sources] += torch.stack([part.sum(0) for part in rows.split(counts.tolist())])


def by_row(function: OfRows, x: Tensor, source: Tensor, *, chunk: int) -> Tensor:
    """The values of R rows, `chunk` rows at a time, and their exact derivative: (R, ...).

    A row is one evaluation of a network: an image at one noise level, for example. Row r sees
    x[source[r]]; source (R,) int64 ascends, and rows are independent. `function` gets the inputs
    (M, ...) of M rows and their numbers (M,), and returns their values (M, ...):

        levels = torch.tensor([0.5, 1.0, 2.0])
        source = torch.arange(len(x)).repeat_interleave(3)  # 0 0 0 1 1 1 ...

        def errors(inputs, rows):  # row r is image r // 3 at level r % 3
            sigma = levels[rows % 3]
            noised = inputs + sigma[:, None, None, None] * noise[rows % 3]
            return (denoiser.denoise(noised, sigma) - inputs).square().sum((1, 2, 3))

        values = by_row(errors, x, source, chunk=64).view(len(x), 3)

    Chunks keep their activations for the backward pass while `activation_bytes` lasts, the first
    one in any case; the others compute theirs again, those rows alone whose cotangent is not zero,
    in the memory of one chunk. A derivative that is itself differentiated keeps all rows.
    """
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _in_chunks(function, x, source, chunk)
    return _ByRow.apply(x, function, source, chunk)  # type: ignore[return-value]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step: Callable, count: int, size: int, *tensors: Tensor):
        state, context = tensors[:size], tensors[size:]
        ctx.step, ctx.count, ctx.size = step, count, size
        # A step that draws, as a stochastic classifier does, finds `using_draws` in this context.
        ctx.surroundings = copy_context()
        ctx.precision = precision_of(tensors[0])
        states = []
        with torch.no_grad():
            for k in range(count):
                states.append(state)
                state = step(k, state, context)
        ctx.save_for_backward(*context, *(tensor for kept in states for tensor in kept))
        return state

    @staticmethod
    @final("rdc.gradients.chain")
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        step, count, size = ctx.step, ctx.count, ctx.size
        saved = ctx.saved_tensors
        context, states = saved[: len(saved) - count * size], saved[len(saved) - count * size :]
        of_context: list[Tensor | None] = [None] * len(context)
        for k in reversed(range(count)):
            state = states[k * size : (k + 1) * size]
            with ctx.precision(), torch.enable_grad():
                leaves = [leaf_of(t) if t.is_floating_point() else t for t in (*state, *context)]
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
    @final("rdc.gradients.straight_through")
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
