"""Second derivatives of networks with constant weights, at about half of autograd's cost.

PyTorch's own double backward computes what only weights need (of a convolution, one more
convolution and memory copies) and takes normalization and SiLU apart into many small operations.
Inside `constant_weights()` these three are replaced by functions that know their own derivatives:
the same values and first derivatives, bit for bit, and the same second derivatives to rounding.
Under autocast, which casts what each of them gets, they stay as they are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rdc.backward import final

aten = torch.ops.aten


class constant_weights(TorchFunctionMode):
    """Context: convolutions, group norms and SiLUs whose weights are constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced = REPLACED.get(func)
        if replaced is not None:
            result = replaced(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor | None:
    if isinstance(padding, str) or input.ndim != 4 or not _replaceable(input, weight, bias):
        return None
    pairs = [[n, n] if isinstance(n, int) else list(n) for n in (stride, padding, dilation)]
    return _Conv.apply(input, weight, bias, pairs, groups)  # type: ignore[return-value]


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5) -> Tensor | None:
    if input.ndim != 4 or not _replaceable(input, weight, bias):
        return None
    return _GroupNorm.apply(input, num_groups, weight, bias, eps)  # type: ignore[return-value]


def _silu(input, inplace=False) -> Tensor | None:
    return None if inplace or not _replaceable(input) else _SiLU.apply(input)  # type: ignore[return-value]


def _replaceable(input: Tensor, *weights: Tensor | None) -> bool:
    learned = any(weight is not None and weight.requires_grad for weight in weights)
    return input.requires_grad and not learned and not torch.is_autocast_enabled(input.device.type)


REPLACED = {torch.conv2d: _conv2d, F.group_norm: _group_norm, F.silu: _silu}


class _Conv(torch.autograd.Function):
    """A convolution: linear in x, so that its derivative and its adjoint's lead back to it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, pairs: list, groups: int):
        ctx.save_for_backward(x, weight)
        ctx.options = pairs, groups
        return torch.conv2d(x, weight, bias, *pairs, groups)  # type: ignore[call-overload]

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return _ConvAdjoint.apply(g, x.detach(), weight, *ctx.options), None, None, None, None


class _ConvAdjoint(torch.autograd.Function):
    """The derivative of a convolution by its input, applied to g; of x only the layout matters."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, pairs: list, groups: int):
        ctx.save_for_backward(weight)
        ctx.options = pairs, groups
        mask = [True, False, False]
        return aten.convolution_backward(
            g, x, weight, None, *pairs, False, [0, 0], groups, mask
        )[0]  # fmt: skip

    @staticmethod
    def backward(ctx, v: Tensor):  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return _Conv.apply(v, weight, None, *ctx.options), None, None, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps):
        sizes = len(x), x.shape[1], x.shape[2] * x.shape[3], groups
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.sizes = sizes
        return y

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[override]
        return _GroupNormAdjoint.apply(g, *ctx.saved_tensors, ctx.sizes), None, None, None, None


class _GroupNormAdjoint(torch.autograd.Function):
    """The derivative of a group norm by its input, applied to g.

    With z the normalized values of a group, r = 1 / its standard deviation, and means over the
    group, it is A u for u = weight g, where A is symmetric:

        A u = r (u - mean(u) - z mean(u z)).
    """

    @staticmethod
    def forward(ctx, g, x, weight, mean, rstd, sizes):
        found = _group_norm_adjoint(g, x, mean, rstd, weight, sizes)
        ctx.save_for_backward(g, x, weight, mean, rstd, found)
        ctx.sizes = sizes
        return found

    @staticmethod
    @final("the gradient of a gradient through group_norm")
    def backward(ctx, v: Tensor):  # type: ignore[override]
        """Derivatives by g and x. By g: weight A v. By x, with a = A u, b = A v,
        dr/dx = -r^2 z / n and dz/dx = A:

        -r z mean(v a) - r (mean(v z) a + mean(u z) b).
        """
        g, x, weight, mean, rstd, a = ctx.saved_tensors
        b = _group_norm_adjoint(v, x, mean, rstd, None, ctx.sizes)
        by_g = b if weight is None else weight.view(-1, 1, 1) * b
        if not ctx.needs_input_grad[1]:
            return by_g, None, None, None, None, None
        n, channels, pixels, groups = ctx.sizes
        each = channels // groups

        def of_pixels(values: Tensor) -> Tensor:
            """A group's number for each of its pixels."""
            alike = values.view(n, groups, 1).expand(n, groups, each)
            return alike.reshape(n, channels, 1, 1)

        def mean_of(values: Tensor, factor: Tensor | None = None) -> Tensor:
            """Mean over each group (N, groups), of values with a factor per channel."""
            sums = values.sum((2, 3))
            sums = sums if factor is None else sums * factor
            return sums.view(n, groups, each).sum(2) / (each * pixels)

        z = (x - of_pixels(mean)).mul_(of_pixels(rstd))
        r = rstd.view(n, groups)
        by_a, by_b, by_z = mean_of(v * z), mean_of(g * z, weight), mean_of(v * a)
        by_x = z.mul_(of_pixels(-r * by_z))
        by_x.addcmul_(a, of_pixels(-r * by_a)).addcmul_(b, of_pixels(-r * by_b))
        return by_g, by_x, None, None, None, None


def _group_norm_adjoint(g, x, mean, rstd, weight, sizes) -> Tensor:
    # The CPU kernel of torch 2.7 is wrong where the memory formats of g and x differ.
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    g, x = g.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    mask = [True, False, False]
    return aten.native_group_norm_backward(g, x, mean, rstd, weight, *sizes, mask)[0]


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[override]
        return _SiLUAdjoint.apply(g, *ctx.saved_tensors)


class _SiLUAdjoint(torch.autograd.Function):
    """g f'(x); with s = sigmoid(x), f''(x) = s (1 - s) (2 + x (1 - 2 s))."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor):
        ctx.save_for_backward(g, x)
        return aten.silu_backward(g, x)

    @staticmethod
    @final("the gradient of a gradient through silu")
    def backward(ctx, v: Tensor):  # type: ignore[override]
        g, x = ctx.saved_tensors
        s = x.sigmoid()
        by_x = aten.sigmoid_backward(g * v, s)  # g v s (1 - s)
        return aten.silu_backward(v, x), by_x.mul_(torch.addcmul(x, x, s, value=-2).add_(2))
