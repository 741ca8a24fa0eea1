"""The Lagrange attack on likelihood maximization (Chen et al., ICML 2024, section 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model, one_each
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.rng import generators, random_start, spawn
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import Selection
from rdc.choices import Norm
from rdc.norms import project, steepest, wide

Penalty = Callable[[Tensor], Tensor]
"""images (B, C, H, W) -> (B,)"""
MULTIPLIERS = (0.1, 0.3, 1.0)


@prepared
def lagrange(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    surrogate: Model,
    penalty: Penalty,
    norm: Norm = "linf",
    loss: Loss = margin,
    multipliers: Sequence[float] = MULTIPLIERS,
    steps: int = 40,
    step_size: float | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Misclassified images within `eps` of `images` (B, C, H, W) in [0, 1] of high likelihood.

    A defense that first raises the likelihood of its image may undo a perturbation, but hardly one
    whose likelihood is high already. This attack ascends the Lagrangian

        loss(surrogate(x), y) - lambda penalty(x)

    by PGD from a random start. `penalty` is what the defense lowers (`LikelihoodMaximizer.loss`),
    `surrogate` the classifier behind it, or another of `evaluation.gradient_modes`. `model` is the
    defense itself, which alone judges: each image's most harmful point on the way comes back.

    In the paper the penalty is the unconditional diffusion loss, under several weights lambda, and
    nothing is differentiated through the maximization; RDC kept 77.54 %, and 75.67 % under BPDA. So
    this is a check of its own kind, not the strongest attack. Losses of classifiers differ in
    scale: here lambda makes the gradient of the penalty, at the start, `multipliers` times as large
    (L1) as that of the loss, for each image. There is a run for each multiplier, on the images that
    the ones before left standing; 0 is PGD.

    With several draws (see `Expectation`) every step sees new ones of `seeds`, and the penalty the
    same as the loss.
    """
    seeds = checked(
        images, labels, eps=eps, norm=norm, seeds=seeds, step_size=step_size, steps=steps
    )
    if not multipliers or min(multipliers) < 0:
        raise ValueError(f"multipliers={tuple(multipliers)} must be one or more numbers, 0 or more")
    if eps == 0:
        return images
    victim = Expectation.of(model)
    selection = Selection(victim, images, labels, seeds)
    for number, multiplier in enumerate(multipliers, start=1):

        def run(index: Tensor, seeds: list[int], multiplier: float = multiplier) -> Tensor:
            ascent = Ascent(
                victim, images[index], labels[index], seeds, surrogate=surrogate, penalty=penalty,
                multiplier=multiplier, eps=eps, norm=norm, loss=loss,
                step_size=2.5 * eps / steps if step_size is None else step_size,
            )  # fmt: skip
            return ascent.run(steps)

        selection.run(run, number)
    return selection.images


@dataclass(eq=False, kw_only=True)
class Ascent(Search):
    """The run of one multiplier from a random start; the point that harms the victim most."""

    surrogate: Model
    penalty: Penalty
    multiplier: float
    norm: Norm
    loss: Loss
    step_size: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rising = self.victim.having(model=self.surrogate)
        self.falling = self.victim.having(model=_logits(self.penalty))
        self.weight: Tensor | None = None  # lambda (B,), from the first gradient on
        sources = generators(spawn(self.seeds, 0))
        self.point = self.worst = random_start(self.images, self.eps, self.norm, sources)
        self.redraw(1)

    def step(self, number: int) -> None:
        ahead = self.point + self.step_size * steepest(self._gradient(), self.norm)
        self.point = project(ahead, self.images, self.eps, self.norm)
        if self.victim.draws > 1:
            self.redraw(number + 1)
        self.keep(self.point, self.victim.evaluate(self.point, self.labels, seeds=self.draws))

    def _gradient(self) -> Tensor:
        """Gradient (B, C, H, W) of the Lagrangian, both terms averaged over the victim's draws."""
        options = {"seeds": self.draws, "loss": self.loss}
        _, up = self.rising.gradient(self.point, self.labels, **options)
        if self.multiplier == 0:
            return up
        options["loss"] = lambda logits, _: logits[:, 0]
        _, down = self.falling.gradient(self.point, torch.zeros_like(self.labels), **options)
        if self.weight is None:
            sizes = [gradient.abs().mean((1, 2, 3)) for gradient in (up, down)]
            flat = sizes[1] == 0
            self.weight = self.multiplier * sizes[0] / sizes[1].masked_fill(flat, 1)
        return up - wide(self.weight) * down


def _logits(penalty: Penalty) -> Model:
    """The penalty as a model of two classes, so that `Expectation` averages it over draws."""

    def logits(images: Tensor) -> Tensor:
        values = one_each(penalty(images), images, "penalty")
        return torch.stack([values, torch.zeros_like(values)], 1)

    return logits
