"""One small protocol for everything that steers a purifier."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from purification.processes import Point
from rdc.gradients import State


@dataclass(frozen=True)
class Moment:
    """Position of a purification: step `k` of its round, counted from the noisiest, at `point`.

    Whatever the number of steps is, `k` counts 1000 t_star of them, as DiffPure takes: of those
    that a longer step covers, it is the last.
    `noise` (B or 1, C, H, W): the term's own unit draw for this step, None where it asks for none.
    """

    k: int
    point: Point
    noise: Tensor | None


class Guidance(nn.Module, ABC):
    """A term G = grad_x log h(x; x_in, t) that is added to the score, times a weight.

    x (B, C, H, W) is the VP state, on the scale of [-1, 1]; x_in is the image that is purified. All
    functions are pure: what a term knows about the image is its `context`, computed once by
    `start`; what it carries from step to step is its `memory`. Gradients flow through x, context
    and memory, unless the term detaches them and says so.

    `batch_coupled`: whether an image's G depends on the other images of the batch.
    `draws`: whether the term asks for a unit draw per step, from a stream of its own.
    """

    batch_coupled = False
    draws = False

    def start(self, x_in: Tensor) -> State:
        """The context: what steps need to know of the given image x_in (B, C, H, W) in [-1, 1]."""
        return ()

    def begin(self, x: Tensor) -> State:
        """The memory before the first step, x being the noised image."""
        return ()

    @abstractmethod
    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        """G (B, C, H, W)."""

    def advance(self, x: Tensor, moment: Moment, context: State, memory: State) -> State:
        """The memory after a step that began at x; as many tensors as before."""
        return memory

    def train(self, mode: bool = True) -> Self:
        """Terms do not learn, and guide alike in training mode."""
        return super().train(False)


class Potential(Guidance):
    """A term given by log h itself; G is its derivative, differentiable once more."""

    @abstractmethod
    def log_h(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        """(B,); an image's value depends on its own row alone, unless `batch_coupled`."""

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        # Where nothing asks for gradients, a graph would tie all later steps together.
        differentiable = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (x, *context, *memory)
        )
        # Fused attention kernels have no second derivative; the plain one does.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            # Context and memory may hold x itself, through which G does not go: a new tensor.
            leaf = x.view_as(x) if x.requires_grad else x.detach().clone().requires_grad_()
            context, memory = usable(context), usable(memory)
            total = self.log_h(leaf, moment, context, memory).sum()
            return torch.autograd.grad(total, leaf, create_graph=differentiable)[0]


def usable(tensors: State) -> State:
    """Return the tensors, those made in inference mode cloned so that a gradient can use them."""
    return tuple(tensor.clone() if tensor.is_inference() else tensor for tensor in tensors)


def frozen(network: nn.Module, argument: str) -> nn.Module:
    """`network` itself, with constant weights and in evaluation mode; `argument` is its name.

    Where others have it too, they may change its mode: it guides within `evaluating`.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{argument}={network!r}: guidance given without its network; give a module that maps "
            "images (B, C, H, W) in [0, 1] to logits (B, K)"
        )
    return network.eval().requires_grad_(False)
