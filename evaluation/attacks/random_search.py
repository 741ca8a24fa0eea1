"""Random search: the harm of noise alone, which every attack must exceed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.rng import generators, normal, random_start, spawn
from evaluation.attacks.validation import checked, prepared
from rdc.choices import Norm
from rdc.norms import project

PER_DRAW = 50  # trials until a random model draws anew


@prepared
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
    return Trials(Expectation.of(model), images, labels, seeds, eps=eps, norm=norm).run(trials)


@dataclass(eq=False, kw_only=True)
class Trials(Search):
    """Random points, two kinds in turn."""

    norm: Norm

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sources, self.worst = generators(spawn(self.seeds, 0)), self.images
        self.redraw(1)

    def step(self, number: int) -> None:
        trial = number - 1
        if self.victim.draws > 1 and trial % PER_DRAW == 0 and trial:
            self.redraw(1, trial)
        point = self._gaussian() if trial % 2 else self._uniform()
        self.keep(point, self.victim.evaluate(point, self.labels, seeds=self.draws))

    def _uniform(self) -> Tensor:
        return random_start(self.images, self.eps, self.norm, self.sources)

    def _gaussian(self) -> Tensor:
        """Noise scaled to beyond the ball, projected."""
        shape = self.images.shape[1:]
        scale = 3 * self.eps if self.norm == "linf" else 2 * self.eps / shape.numel() ** 0.5
        noise = scale * normal(self.sources, shape, self.images)
        return project(self.images + noise, self.images, self.eps, self.norm)
