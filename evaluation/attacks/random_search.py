"""Random search: what noise alone does. An attack that finds less is broken."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.norms import Norm, project, random_start
from evaluation.attacks.rng import generators, normal, spawn
from evaluation.attacks.validation import checked

PER_DRAW = 50  # trials until a random model draws anew


def random_search(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    trials: int = 1000,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """The most harmful of `trials` random points within `eps` of each image, and of the image.

    In turn uniform in the ball, and Gaussian noise scaled beyond it and projected: near the sphere
    in L2, mostly in corners of the ball in L-infinity. Images (B, C, H, W) in [0, 1]. With several
    draws, trials are compared on the same ones; the best one meets new ones every 50 trials.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, trials=trials)
    if eps == 0:
        return images
    victim = Expectation.of(model)
    sources = generators(spawn(seeds, 0))
    worst, draws = images, spawn(seeds, 1)
    harm = victim.evaluate(worst, labels, seeds=draws)
    for trial in range(trials):
        if victim.draws > 1 and trial % PER_DRAW == 0 and trial:
            draws = spawn(seeds, 1, trial)
            harm = victim.evaluate(worst, labels, seeds=draws)
        if trial % 2:
            scale = 3 * eps if norm == "linf" else 2 * eps / images[0].numel() ** 0.5
            noise = scale * normal(sources, images.shape[1:], images)
            point = project(images + noise, images, eps, norm)
        else:
            point = random_start(images, eps, norm, sources)
        judged = victim.evaluate(point, labels, seeds=draws)
        worse = judged.worse(harm)
        worst = torch.where(worse[:, None, None, None], point, worst)
        harm = judged.where(worse, harm)
    return worst
