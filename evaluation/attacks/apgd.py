"""Auto-PGD (Croce & Hein, ICML 2020): gradient ascent that adapts its step size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Judgment, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import TARGETED, UNTARGETED, Loss, cross_entropy
from evaluation.attacks.rng import generators, pick, random_start, spawn
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import Selection, top_classes
from rdc.choices import Norm
from rdc.norms import project, steepest, wide

MOMENTUM = 0.75  # alpha: the share of the new step in a move
RISING = 0.75  # rho: the share of steps that must raise the loss


@prepared
def apgd(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    loss: Loss = cross_entropy,
    targets: int = 0,
    steps: int = 100,
    restarts: int = 1,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images within `eps` of `images` (B, C, H, W) in [0, 1], each the most harmful that was found.

    Algorithm 1 of the paper, from `restarts` random starts. With `targets` > 0 the loss is a
    targeted one, and every restart aims at that many of the likeliest wrong classes in turn. Later
    runs leave out images that are wrong under all draws.

    With several draws (see `Expectation`), the loss, the steps and the best point are judged by
    means over the draws, the same ones from one checkpoint to the next. There new ones are drawn,
    and the best point is judged anew, so that it cannot stay the best by luck.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, steps=steps, restarts=restarts)
    if targets < 0:
        raise ValueError(f"targets={targets} must be 0 (none) or the number of classes to aim at")
    if (targets and loss in UNTARGETED) or (not targets and loss in TARGETED):
        kind = "aims at classes" if loss in TARGETED else "aims at none"
        raise ValueError(
            f"targets={targets}: {loss.__name__} {kind}; give targeted_dlr or targeted_margin with "
            "targets, and cross_entropy, margin or dlr without"
        )
    if eps == 0:
        return images
    victim = Expectation.of(model)
    selection = Selection(victim, images, labels, seeds)
    aims: list[Tensor | None] = [None]
    if targets:
        aims = [*top_classes(victim, images, labels, count=targets, seeds=spawn(seeds, 0))]
    for number, aim in enumerate(restarts * aims, start=1):

        def run(index: Tensor, seeds: list[int], aim: Tensor | None = aim) -> Tensor:
            climb = Climb(
                victim, images[index], labels[index], seeds, eps=eps, norm=norm, loss=loss,
                targets=None if aim is None else aim[index],
            )  # fmt: skip
            return climb.run(steps)

        selection.run(run, number)
    return selection.images


def checkpoints(steps: int) -> list[int]:
    """Numbers of steps after which step sizes are reconsidered (section 3)."""
    hundredths = [0, 22]
    while hundredths[-1] < 100:
        last, before = hundredths[-1], hundredths[-2]
        hundredths.append(last + max(last - before - 3, 6))
    reached = {-(-share * steps // 100) for share in hundredths[1:]}
    return sorted(step for step in reached if step < steps)


@dataclass(eq=False, kw_only=True)
class Climb(Search):
    """One run of algorithm 1 on a batch, from one random start."""

    norm: Norm
    loss: Loss
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draws = spawn(self.seeds, 0)
        sources = generators(spawn(self.seeds, 1))
        start = random_start(self.images, self.eps, self.norm, sources)
        self.point = self.before = start
        self.now, self.gradient = self._gradient(start)
        self.best, self.best_gradient, self.best_loss = start, self.gradient, self.now.loss
        self.worst, self.harm = start, self.now
        self.step_size = self.images.new_full((len(self.images),), 2 * self.eps)
        self.rises = torch.zeros_like(self.now.loss)
        self.halved = torch.zeros_like(self.now.loss, dtype=torch.bool)
        self.best_loss_before = self.best_loss

    def run(self, steps: int) -> Tensor:
        """The most harmful points (B, C, H, W) of `steps` steps, by the last draws."""
        self.checkpoints, self.steps = (0, *checkpoints(steps)), steps
        return super().run(steps)

    def step(self, number: int) -> None:
        reconsiders = number in self.checkpoints
        redraws = reconsiders and self.victim.draws > 1
        self._move(MOMENTUM if number > 1 else 1.0)
        loss = self.now.loss
        if redraws or number == self.steps:  # no step will follow the gradient under these draws
            self.now = self._judge(self.point)
        else:
            self.now, self.gradient = self._gradient(self.point)
        self._note(loss)
        if reconsiders:
            place = self.checkpoints.index(number)
            self._reconsider(number - self.checkpoints[place - 1])
            if redraws:
                self._redraw(place + 1)

    def _move(self, share: float) -> None:
        """Take a step with momentum."""
        step = wide(self.step_size) * steepest(self.gradient, self.norm)
        ahead = self._inside(self.point + step)
        move = share * (ahead - self.point) + (1 - share) * (self.point - self.before)
        self.before, self.point = self.point, self._inside(self.point + move)

    def _note(self, loss: Tensor) -> None:
        """Note the best and the most harmful points; `loss` (B,) was that before the step."""
        self.rises = self.rises + (self.now.loss > loss)
        better = self.now.loss > self.best_loss
        self.best_loss = torch.where(better, self.now.loss, self.best_loss)
        self.best = torch.where(wide(better), self.point, self.best)
        self.best_gradient = torch.where(wide(better), self.gradient, self.best_gradient)
        self.keep(self.point, self.now)

    def _reconsider(self, length: int) -> None:
        """Halve the step and return to the best point where the last `length` steps did not help:
        few of them rose (condition 1), or the same step size found nothing better (condition 2)."""
        stuck = ~self.halved & (self.best_loss <= self.best_loss_before)
        self.halved = (self.rises < RISING * length) | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.point = torch.where(wide(self.halved), self.best, self.point)
        self.gradient = torch.where(wide(self.halved), self.best_gradient, self.gradient)
        loss = torch.where(self.halved, self.best_loss, self.now.loss)
        self.now = self.now._replace(loss=loss)
        self.rises = torch.zeros_like(self.rises)
        self.best_loss_before = self.best_loss

    def _redraw(self, number: int) -> None:
        """Take other draws and judge the points of interest by them."""
        self.draws = spawn(self.seeds, number)
        self.now, self.gradient = self._gradient(self.point)
        at_best = ~self._elsewhere(self.best)  # also where no gradient of it was taken before
        self.best_gradient = torch.where(wide(at_best), self.gradient, self.best_gradient)
        self.best_loss = self.best_loss_before = self._judge_anew(self.best).loss
        self.harm = self._judge_anew(self.worst)

    def _judge_anew(self, points: Tensor) -> Judgment:
        """Judge points (B, C, H, W); where they are the present ones, as these."""
        index = self._elsewhere(points).nonzero()[:, 0]
        if not len(index):
            return self.now
        judged = self._judge(points[index], index)
        return Judgment(
            *(now.index_copy(0, index, new) for now, new in zip(self.now, judged, strict=True))
        )

    def _elsewhere(self, points: Tensor) -> Tensor:
        """Images whose present point is not that of `points` (B, C, H, W): (B,) bool."""
        return (points != self.point).flatten(1).any(1)

    def _inside(self, points: Tensor) -> Tensor:
        return project(points, self.images, self.eps, self.norm)

    def _gradient(self, points: Tensor) -> tuple[Judgment, Tensor]:
        return self.victim.gradient(
            points, self.labels, seeds=self.draws, loss=self.loss, targets=self.targets
        )

    def _judge(self, points: Tensor, index: Tensor | None = None) -> Judgment:
        """Judge points (M, C, H, W) of the images `index` (M,), by default of all."""
        labels, targets, draws = self.labels, self.targets, self.draws
        if index is not None:
            labels, draws = labels[index], pick(draws, index)
            targets = None if targets is None else targets[index]
        return self.victim.evaluate(points, labels, seeds=draws, loss=self.loss, targets=targets)
