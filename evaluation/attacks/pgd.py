"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Judgment, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.rng import random_start
from evaluation.attacks.validation import checked, prepared
from rdc.choices import Norm
from rdc.norms import project, steepest


@prepared
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
    2.5 eps / steps) along the steepest direction, and returns each image's most harmful point on
    the way: a misclassified one, of those the one of the largest margin.

    With several draws (see `Expectation`), every step sees new ones of `seeds`, and so does the
    point that was worst until then: the two are compared on the same draws.
    """
    seeds = checked(
        images, labels, eps=eps, norm=norm, seeds=seeds, step_size=step_size, steps=steps
    )
    if eps == 0:
        return images
    start = images
    if generator is not None:
        start = random_start(images, eps, norm, [generator] * len(images))
    ascent = Ascent(
        Expectation.of(model), images, labels, seeds, start=start, eps=eps, norm=norm, loss=loss,
        step_size=2.5 * eps / steps if step_size is None else step_size,
    )  # fmt: skip
    return ascent.run(steps)


@dataclass(eq=False, kw_only=True)
class Ascent(Search):
    """Steps of `step_size` from `start` along the part of the gradient that `restrict` keeps."""

    start: Tensor
    norm: Norm
    loss: Loss
    step_size: float
    restrict: Callable[[Tensor], Tensor] = lambda gradient: gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        self.point, self.worst, self.taken = self.start, self.images, 0
        self.draws = list(self.seeds)
        lowest = torch.full_like(self.images[:, 0, 0, 0], -torch.inf)
        self.harm = Judgment(lowest, torch.zeros_like(lowest), lowest)

    def standing(self) -> Tensor:
        """All images before the first step, where the model has judged no point."""
        return super().standing() if self.taken else torch.ones_like(self.active)

    def step(self, number: int) -> None:
        self._redraw()
        judged, gradient = self.victim.gradient(
            self.point, self.labels, seeds=self.draws, loss=self.loss
        )
        self.keep(self.point, judged)
        direction = steepest(self.restrict(gradient), self.norm)
        ahead = self.point + self.step_size * direction
        self.point, self.taken = project(ahead, self.images, self.eps, self.norm), number

    def finish(self) -> None:
        """Judge the last point."""
        self._redraw()
        self.keep(self.point, self.victim.evaluate(self.point, self.labels, seeds=self.draws))

    def _redraw(self) -> None:
        if self.victim.draws > 1:
            self.redraw(self.taken)
