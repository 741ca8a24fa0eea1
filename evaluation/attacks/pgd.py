"""Projected gradient descent (Madry et al., ICLR 2018), L-infinity."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini & Wagner 2017): positive where misclassified.

    Unlike the cross-entropy it does not saturate when the logits are badly scaled.
    """
    right = logits.gather(1, labels[:, None])[:, 0]
    wrong = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return wrong.amax(1) - right


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 40,
    step_size: float | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = margin,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images within `eps` (L-infinity, [0, 1] scale) of `images` that raise `loss` per image.

    `model` maps [0, 1] images (B, C, H, W) to logits (B, K). Starts at a uniform point of the ball
    drawn from `generator` (without one: at the images), takes `steps` signed steps of `step_size`
    (default 2.5 eps / steps), and returns each image's best point on the way.
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"eps={eps} must be in [0, 1]: it is on the [0, 1] scale of images")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if eps == 0:
        return images
    step_size = 2.5 * eps / steps if step_size is None else step_size
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    point = images
    if generator is not None:
        start = torch.rand(images.shape, generator=generator, dtype=images.dtype)
        point = low + (high - low) * start.to(images)

    best, best_value = images, torch.full_like(images[:, 0, 0, 0], -torch.inf)
    for step in range(steps + 1):
        point = point.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            value = loss(model(point), labels)
        better = value.detach() > best_value
        best = torch.where(better[:, None, None, None], point.detach(), best)
        best_value = torch.where(better, value.detach(), best_value)
        if step < steps:
            (gradient,) = torch.autograd.grad(value.sum(), point)
            point = (point.detach() + step_size * gradient.sign()).clamp(low, high)
    return best
