"""The Lagrange attack on likelihood maximization (Chen et al., ICML 2024, section 4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.norms import Norm, project, random_start, steepest, wide
from evaluation.attacks.rng import generators, spawn
from evaluation.attacks.validation import checked
from evaluation.attacks.worst_case import Selection

Penalty = Callable[[Tensor], Tensor]
"""images (B, C, H, W) -> (B,)"""
MULTIPLIERS = (0.1, 0.3, 1.0)


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
    """Images within `eps` of `images` (B, C, H, W) in [0, 1] that the defense is content with.

    A defense that first makes its image likelier may undo a perturbation, but hardly one that is
    likely already. This attack climbs the Lagrangian

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
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, steps=steps)
    if not multipliers or min(multipliers) < 0:
        raise ValueError(f"multipliers={tuple(multipliers)} must be one or more numbers, 0 or more")
    if eps == 0:
        return images
    victim = Expectation.of(model)
    selection = Selection(victim, images, labels, seeds)
    for number, multiplier in enumerate(multipliers, start=1):

        def run(index: Tensor, seeds: list[int], multiplier: float = multiplier) -> Tensor:
            aims = labels[index]
            return climb(
                victim, Lagrangian(victim, aims, surrogate, penalty, loss, multiplier),
                images[index], aims, eps=eps, norm=norm, steps=steps,
                step_size=2.5 * eps / steps if step_size is None else step_size, seeds=seeds,
            )  # fmt: skip

        selection.run(run, number)
    return selection.images


def climb(
    victim: Expectation,
    lagrangian: "Lagrangian",
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    steps: int,
    step_size: float,
    seeds: Sequence[int],
) -> Tensor:
    """The run of one multiplier: the point that harms `victim` most, by the last draws."""
    point = best = random_start(images, eps, norm, generators(spawn(seeds, 0)))
    draws = spawn(seeds, 1)
    harm = victim.evaluate(point, labels, seeds=draws)
    for step in range(1, steps + 1):
        direction = steepest(lagrangian.gradient(point, draws), norm)
        point = project(point + step_size * direction, images, eps, norm)
        if victim.draws > 1:
            draws = spawn(seeds, step + 1)
            harm = victim.evaluate(best, labels, seeds=draws)
        judged = victim.evaluate(point, labels, seeds=draws)
        worse = judged.worse(harm)
        best = torch.where(wide(worse), point, best)
        harm = judged.where(worse, harm)
    return best


class Lagrangian:
    """What the attack climbs, both terms averaged over the victim's draws."""

    def __init__(
        self,
        victim: Expectation,
        labels: Tensor,
        surrogate: Model,
        penalty: Penalty,
        loss: Loss,
        multiplier: float,
    ) -> None:
        self.labels, self.loss, self.multiplier = labels, loss, multiplier
        self.surrogate, self.penalty = (
            Expectation(part, draws=victim.draws, max_rows=victim.max_rows)
            for part in (surrogate, _logits(penalty))
        )
        self.weight: Tensor | None = None
        """lambda (B,), since the first gradient"""

    def gradient(self, points: Tensor, draws: Sequence[int]) -> Tensor:
        """Its gradient (B, C, H, W)."""
        _, up = self.surrogate.gradient(points, self.labels, seeds=draws, loss=self.loss)
        if self.multiplier == 0:
            return up
        _, down = self.penalty.gradient(
            points, torch.zeros_like(self.labels), seeds=draws, loss=lambda logits, _: logits[:, 0]
        )
        if self.weight is None:
            sizes = [gradient.abs().mean((1, 2, 3)) for gradient in (up, down)]
            flat = sizes[1] == 0
            self.weight = self.multiplier * sizes[0] / sizes[1].masked_fill(flat, 1)
        return up - wide(self.weight) * down


def _logits(penalty: Penalty) -> Model:
    """The penalty as a model of two classes, so that `Expectation` averages it over draws."""

    def logits(images: Tensor) -> Tensor:
        values = penalty(images)
        return torch.stack([values, torch.zeros_like(values)], 1)

    return logits
