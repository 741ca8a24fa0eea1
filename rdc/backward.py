"""Parts of backward passes: refusal of a second one, recomputation, memory for activations."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


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


def final(name: str) -> Callable[[Callable], Callable]:
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
            causes = [each for each in (*ctx.saved_tensors, *cotangents) if each is not None]
            final = iter(_Final.apply(name, len(gradients), *gradients, *causes))  # type: ignore[arg-type]
            return tuple(None if each is None else next(final) for each in found)

        return checked

    return decorate


ACTIVATION_BYTES = {"cpu": 2**30, "cuda": 2**33}


def activation_bytes(x: Tensor) -> int:
    """Bytes of activations to keep on x's device for a backward pass, instead of recomputing."""
    return ACTIVATION_BYTES.get(x.device.type, 2**30)


def leaf_of(x: Tensor) -> Tensor:
    """A copy outside any graph (and outside inference mode) that can be differentiated."""
    return x.detach().clone().requires_grad_()


def precision_of(x: Tensor) -> Callable[[], AbstractContextManager]:
    """The present autocast settings, to be entered again."""
    kind = x.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return partial(torch.autocast, kind, dtype=dtype, enabled=enabled)


class Room:
    """Memory for the activations of `calls` alike calls: all of them keep theirs, or none does.

    Only the first call is measured, because measuring takes time.
    """

    def __init__(self, memory: int, calls: int = 1) -> None:
        self.share = memory // max(1, calls)
        self.fits: bool | None = None if self.share > 0 else False

    def run(self, function: Callable[[], Result]) -> Result | None:
        """The result of a function that builds a graph; None, without a call, if it cannot stay.

        `fits` says afterwards whether the result may be kept.
        """
        if self.fits is None:
            result, size = counting_saved_bytes(function)
            self.fits = size <= self.share
            return result
        return function() if self.fits else None


def counting_saved_bytes(function: Callable[[], Result]) -> tuple[Result, int]:
    """The result of a function, and the size of what its graph keeps for a backward pass."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        return function(), sum(sizes.values())
