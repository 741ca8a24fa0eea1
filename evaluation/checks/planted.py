"""Check that the attack finds a vulnerability that was planted."""

from dataclasses import dataclass

import torch
from scipy.special import bdtr
from torch import Tensor

from evaluation.attacks.apgd import Climb
from evaluation.attacks.rng import generators, normal, random_start, spawn
from evaluation.checks.budgets import LOOK, SURE
from evaluation.checks.check import Finding, check
from evaluation.checks.context import UNSEEN, Subject
from rdc.norms import project, steepest

INNER = 12
"""Random inner points, beside the image."""
RADIUS = 0.9
"""Radius of the inner points' ball, as a share of the budget."""
CANDIDATES = 12
"""Points on the surface, the best of which is planted."""
CLOSE = 0.95
"""Threshold of class 1 between the inner points (0) and the planted one (1): 10 random points on
the surface find it on 0 to 60 % of images, APGD of 2 steps on honest models on 98 % to 100 %."""
RIDGE = 1e-3
EXPECTED = 0.95
"""Share of images on which an attack that works finds it; the paper's threshold."""


@check("planted vulnerability")
def planted(subject: Subject) -> Finding:
    """The attack finds the other class of a readout that has one on the surface of the ball.

    The binarization test of Zimmermann et al. ("Increasing Confidence in Adversarial Robustness
    Evaluations", NeurIPS 2022): per image, the defense's features go through a linear readout under
    which the image and random inner points are class 0, and one planted point on the surface is
    class 1; an attack that misses it would miss others. Here the features are the logits, so that
    any defense can be tested. They are few: the readout is Fisher's discriminant, and the planted
    point the one of several that it tells apart best. The attack has the evaluation's settings.

    Fails where a success rate of `EXPECTED` is ruled out (exact binomial, `SURE`). Reported beside
    it: what as many random points of the surface find as the attack has steps.
    """
    if subject.norm == "stadv":
        return None, "no ball of images to plant a point in"
    if subject.logits().isinf().any():
        return None, "no readout of logits of -inf, which are probabilities of 0"
    readout = Readout.fit(subject)
    index = readout.tells.nonzero()[:, 0]
    count, total = len(index), len(readout.tells)
    if count < total / 2:
        reason = f"the logits of {total - count} of {total} images hardly change within the ball"
        return None, f"{reason}: see dead gradients"
    if bdtr(0, count, EXPECTED) >= SURE:
        return None, f"too few images: an attack that works could miss all {count}"
    found = int(searched(subject, readout)[index].sum())
    lucky = int(by_luck(subject, readout)[index].sum())
    passed = bool(bdtr(found, count, EXPECTED) >= SURE)
    detail = (
        f"the attack finds the planted class on {found} of {count} images, {subject.steps} random "
        f"points of the surface on {lucky}"
    )
    if passed and lucky >= found:
        detail += "; with so few classes, or so large a budget, that says little"
    remedy = (
        "an attack that misses what is there says nothing about robustness: use more steps, or a "
        "gradient that leads there"
    )
    return passed, detail, remedy


@dataclass(frozen=True)
class Readout:
    """A linear classifier per image: class 1 of image i is weights[i] . logits > bias[i].

    `weights` (B, K), `bias` (B,), the planted `points` (B, C, H, W), and `tells` (B,) bool: True
    if the classifier separates the planted point from the inner ones.
    """

    weights: Tensor
    bias: Tensor
    tells: Tensor
    points: Tensor

    @classmethod
    def fit(cls, subject: Subject) -> "Readout":
        """Fisher's discriminant between inner points and the farthest of some on the surface."""
        sources = generators(spawn(subject.seeds, 5))
        near = [subject.images] + [
            random_start(subject.images, RADIUS * subject.eps, subject.ball, sources)
            for _ in range(INNER)
        ]
        inner = features(subject, near)
        far = torch.stack([surface(subject, sources) for _ in range(CANDIDATES)], 1)
        outer = features(subject, list(far.unbind(1)))
        middle = inner.mean(1, keepdim=True)
        inner, outer = inner - middle, outer - middle
        spread = inner.mT @ inner / inner.shape[1]
        scale = spread.diagonal(dim1=1, dim2=2).mean(1)
        flat = scale == 0
        unit = torch.eye(spread.shape[2]).to(spread)
        spread = spread + torch.where(flat, 1, RIDGE * scale)[:, None, None] * unit
        directions = torch.linalg.solve(spread, outer.mT).mT
        distances = (directions * outer).sum(2)
        farthest = distances.argmax(1)
        rows = torch.arange(len(farthest), device=farthest.device)
        reach = distances[rows, farthest]
        flat = flat | (reach <= 0)
        weights = directions[rows, farthest] / torch.where(flat, 1, reach)[:, None]
        # Now the planted point is at 1, and the inner ones are around 0.
        most = (inner @ weights[:, :, None])[:, :, 0].amax(1)
        bias = (1 - CLOSE) * most + CLOSE + (weights * middle[:, 0]).sum(1)
        return cls(weights, bias, ~flat & (most < 1), far[rows, farthest])

    def __call__(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Loss (M,) to maximize, positive in class 1: logits (M, K), of the images `index` (M,)."""
        return (self.weights[index].to(logits) * logits).sum(1) - self.bias[index].to(logits)


def features(subject: Subject, points: list[Tensor]) -> Tensor:
    """The mean logits over unseen draws, of points (B, C, H, W) each: (B, len(points), K)."""
    seeds = spawn(subject.seeds, UNSEEN) * len(points)
    logits = subject.victim.logits(torch.cat(points), seeds=seeds).double().mean(1)
    return logits.unflatten(0, (len(points), -1)).transpose(0, 1)


def surface(subject: Subject, sources: list[torch.Generator]) -> Tensor:
    """A random point on the surface of each image's ball, as far as the box allows."""
    noise = normal(sources, subject.images.shape[1:], subject.images)
    far = noise.sign() if subject.ball == "linf" else 2 * steepest(noise, "l2")
    return project(subject.images + subject.eps * far, subject.images, subject.eps, subject.ball)


def searched(subject: Subject, readout: Readout) -> Tensor:
    """Search for class 1 with APGD, a few steps first: (B,) bool, True where it is found."""
    found = torch.zeros_like(readout.tells)
    for steps in (LOOK, subject.steps):
        index = (readout.tells & ~found).nonzero()[:, 0]
        if len(index):
            left = subject.only(index)
            climb = Climb(
                left.victim, left.images, left.labels, spawn(left.seeds, 6), eps=left.eps,
                norm=left.ball, loss=readout, targets=index,
            )  # fmt: skip
            climb.run(steps)
            found[index] = readout(features(left, [climb.best])[:, 0], left.labels, index) > 0
    return found


def by_luck(subject: Subject, readout: Readout) -> Tensor:
    """Search for class 1 among as many random points of the surface: (B,) bool."""
    sources = generators(spawn(subject.seeds, 7))
    logits = features(subject, [surface(subject, sources) for _ in range(subject.steps)])
    index = torch.arange(len(logits), device=logits.device)
    values = [readout(logits[:, k], subject.labels, index) for k in range(logits.shape[1])]
    return (torch.stack(values) > 0).any(0)
