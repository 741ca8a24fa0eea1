"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Judgment, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.norms import Norm, project, random_start, steepest, wide
from evaluation.attacks.rng import spawn
from evaluation.attacks.validation import checked, prepared


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
    ascent = Ascent(
        Expectation.of(model), images, labels, seeds, start=start, eps=eps, norm=norm, loss=loss,
        step_size=2.5 * eps / steps if step_size is None else step_size,
    )  # fmt: skip
    return ascent.run(steps)


@dataclass(eq=False, kw_only=True)
class Ascent(Search):
    """Steps of `step_size` from `start` along the part of the gradient that `restrict` keeps."""

    start: Tensor
    eps: float
    norm: Norm
    loss: Loss
    step_size: float
    restrict: Callable[[Tensor], Tensor] = lambda gradient: gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        self.point, self.worst, self.taken = self.start, self.images, 0
        lowest = torch.full_like(self.images[:, 0, 0, 0], -torch.inf)
        self.harm = Judgment(lowest, torch.zeros_like(lowest), torch.zeros_like(lowest))

    def step(self, number: int) -> None:
        draws = self._draws()
        judged, gradient = self.victim.gradient(
            self.point, self.labels, seeds=draws, loss=self.loss
        )
        self._keep(judged)
        direction = steepest(self.restrict(gradient), self.norm)
        ahead = self.point + self.step_size * direction
        self.point, self.taken = project(ahead, self.images, self.eps, self.norm), number

    def finish(self) -> None:
        """Judge the last point."""
        draws = self._draws()
        self._keep(self.victim.evaluate(self.point, self.labels, seeds=draws, loss=self.loss))

    def _draws(self) -> Sequence[int]:
        """The seeds of the next draws; the best point is judged by them anew."""
        if self.victim.draws == 1:
            return self.seeds
        draws = spawn(self.seeds, self.taken)
        self.harm = self.victim.evaluate(self.worst, self.labels, seeds=draws, loss=self.loss)
        return draws

    def _keep(self, judged: Judgment) -> None:
        better = judged.loss > self.harm.loss
        self.worst = torch.where(wide(better), self.point, self.worst)
        self.harm = judged.where(better, self.harm)
