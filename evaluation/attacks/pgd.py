"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.norms import Norm, project, random_start, steepest, wide
from evaluation.attacks.rng import spawn
from evaluation.attacks.validation import checked


def pgd(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 40,
    step_size: float | None = None,
    loss: Loss = margin,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images within `eps` ([0, 1] scale) of `images` that raise `loss` per image.

    `model` maps [0, 1] images (B, C, H, W) to logits (B, K). Starts at a uniform point of the ball
    drawn from `generator` (without one: at the images), takes `steps` steps of `step_size` (default
    2.5 eps / steps) along the steepest direction, and returns each image's best point on the way.

    With several draws (see `Expectation`), every step sees new ones of `seeds`, and so does the
    point that was best until then: the two are compared on the same draws.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, steps=steps)
    if eps == 0:
        return images
    start = images
    if generator is not None:
        start = random_start(images, eps, norm, [generator] * len(images))
    step_size = 2.5 * eps / steps if step_size is None else step_size
    return climb(
        Expectation.of(model), images, labels, start, eps=eps, norm=norm, steps=steps,
        step_size=step_size, loss=loss, seeds=seeds,
    )  # fmt: skip


def climb(
    victim: Expectation,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    eps: float,
    norm: Norm,
    steps: int,
    step_size: float,
    loss: Loss,
    seeds: Sequence[int],
    restrict: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """`pgd` from `start` that only sees as much of the gradient as `restrict` lets through."""
    point, best = start, images
    best_loss = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    for step in range(steps + 1):
        if victim.draws > 1:
            draws = spawn(seeds, step)
            best_loss = victim.evaluate(best, labels, seeds=draws, loss=loss).loss
        else:
            draws = seeds
        if step < steps:
            judged, gradient = victim.gradient(point, labels, seeds=draws, loss=loss)
            direction = steepest(restrict(gradient), norm)
        else:
            judged, direction = victim.evaluate(point, labels, seeds=draws, loss=loss), None
        better = judged.loss > best_loss
        best = torch.where(wide(better), point, best)
        best_loss = torch.where(better, judged.loss, best_loss)
        if direction is not None:
            point = project(point + step_size * direction, images, eps, norm)
    return best
