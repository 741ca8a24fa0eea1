"""FAB: the closest misclassified image (Croce & Hein, ICML 2020, "Minimally distorted ...")."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import targeted_margin
from evaluation.attacks.rng import generators, pick, random_start, spawn
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import top_classes
from rdc.choices import Norm
from rdc.norms import size, to_hyperplane, wide

OVERSHOOT = 1.05  # eta: beyond the boundary of the linearized model
BACK = 0.9  # beta: from a misclassified point back toward the image
BIAS = 0.1  # alpha_max: largest share of the step from the image, not from the last point
HALVINGS = 10  # of the way from a misclassified point to the image, at the end


@prepared
def fab(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | None,
    norm: Norm = "linf",
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Misclassified images within `eps` of `images` (B, C, H, W) in [0, 1], where some were found;
    elsewhere the images. With `eps` None the closest ones, however far.

    Algorithm 1 of the paper in its targeted form: each step goes to where the linearized logits of
    the label and of one of the `targets` likeliest wrong classes meet. The first run starts at the
    images, every other at a random point nearby. An image that has fallen within `eps` is done.

    The method walks along a decision boundary. For a random model that is the one of its mean
    logits, on one set of draws, and a point is across it where most draws are wrong.
    """
    seeds = checked(
        images, labels, eps=eps or 0, norm=norm, seeds=seeds,
        targets=targets, steps=steps, restarts=restarts,
    )  # fmt: skip
    if eps == 0:
        return images
    victim = Expectation.of(model)
    draws = spawn(seeds, 0)
    wrong = victim.evaluate(images, labels, seeds=draws).wrong > 0.5
    aims = top_classes(victim, images, labels, count=targets, seeds=draws)
    closest, distance = images, torch.full_like(images[:, 0, 0, 0], inf).masked_fill(wrong, 0)
    for number, aim in enumerate(restarts * aims):
        index = (distance > (eps or 0)).nonzero()[:, 0]
        if not len(index):
            break
        walk = Walk(
            victim, images[index], labels[index], pick(draws, index), targets=aim[index],
            norm=norm, eps=eps or 0,
        )  # fmt: skip
        if number >= len(aims):
            near = distance[index].clamp_max(1.0 if eps is None else eps) / 2
            walk.start_within(near, generators(spawn(pick(seeds, index), number + 1)))
        found = walk.run(steps)
        far = size(found - images[index], norm)
        nearer = (far > 0) & (far < distance[index])
        closest = closest.index_copy(0, index[nearer], found[nearer])
        distance = distance.index_copy(0, index[nearer], far[nearer])
    return closest if eps is None else torch.where(wide(distance <= eps), closest, images)


@dataclass(eq=False, kw_only=True)
class Walk(Search):
    """One run toward one wrong class per image; the worst points are the closest misclassified."""

    targets: Tensor
    norm: Norm

    def __post_init__(self) -> None:
        super().__post_init__()
        self.point = self.worst = self.images
        self.distance = torch.full_like(self.images[:, 0, 0, 0], inf)

    def start_within(self, radius: Tensor, sources: Sequence[torch.Generator]) -> None:
        """Start at random points at most `radius` (B,) from the images."""
        unit = random_start(torch.full_like(self.images, 0.5), 0.5, self.norm, sources) - 0.5
        self.point = (self.images + 2 * wide(radius) * unit).clamp(0, 1)

    def standing(self) -> Tensor:
        """Images without a misclassified point within eps: (B,) bool."""
        return self.distance > self.eps

    def step(self, number: int) -> None:
        self.point = self._across()
        found = self._note(self.point)
        back = self.images + BACK * (self.point - self.images)
        self.point = torch.where(wide(found), back, self.point)

    def finish(self) -> None:
        """Shorten the way to the closest points as far as they stay misclassified."""
        if self.distance.isinf().all():
            return
        change = self.worst - self.images
        low, high = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            wrong = self._note(self.images + wide(middle) * change)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)

    def _across(self) -> Tensor:
        """Just beyond the boundary of the linearized model, drawn toward the images."""
        images, point = self.images, self.point
        judged, slope = self.victim.gradient(
            point, self.labels, loss=targeted_margin, targets=self.targets, seeds=self.seeds
        )
        gap = -judged.loss.to(slope)
        rest = gap + (slope * (point - images)).sum((1, 2, 3))
        both = torch.cat([point, images])
        moved = to_hyperplane(both, slope.repeat(2, 1, 1, 1), torch.cat([gap, rest]), self.norm)
        from_point, from_image = (moved - both).chunk(2)
        near, far = size(from_point, self.norm), size(from_image, self.norm)
        bias = (near / (near + far).clamp_min(torch.finfo(near.dtype).tiny)).clamp_max(BIAS)
        bias = wide(bias)
        mixed = (1 - bias) * (point + OVERSHOOT * from_point)
        return (mixed + bias * (images + OVERSHOOT * from_image)).clamp(0, 1)

    def _note(self, points: Tensor) -> Tensor:
        """Keep the closest misclassified points; the mask (B,) of those misclassified now."""
        wrong = self.victim.evaluate(points, self.labels, seeds=self.seeds).wrong > 0.5
        distance = size(points - self.images, self.norm)
        closer = wrong & (distance < self.distance)
        self.worst = torch.where(wide(closer), points, self.worst)
        self.distance = torch.where(closer, distance, self.distance)
        return wrong
