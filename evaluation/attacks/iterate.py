"""The loop that iterative attacks share: step by step, without the images that have fallen."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Judgment
from evaluation.attacks.rng import pick, spawn
from rdc.norms import wide

CLEAR = 0.1


@dataclass(eq=False)
class Search(ABC):
    """A search over B images at once; subclasses define `step`.

    Where the victim has `stop_when_wrong`, an image is done once it is misclassified by `CLEAR` of
    the margin that it had at first: less might be undone by rounding. Its result is that of this
    moment, whoever else is in the batch, which it leaves. For that, every attribute that is a
    tensor, a Judgment or a list has an entry for each image.
    """

    victim: Expectation
    images: Tensor
    labels: Tensor
    seeds: Sequence[int]
    eps: float = field(kw_only=True)

    worst: Tensor = field(init=False)
    """(B, C, H, W), the most harmful points so far"""
    harm: Judgment = field(init=False)
    """the model's judgment of them"""
    draws: list[int] = field(init=False)
    """seeds of the draws that judge them"""
    clear: Tensor | None = field(init=False, default=None)
    """margins (B,) with which images leave"""

    def __post_init__(self) -> None:
        self.seeds = list(self.seeds)
        self.rows = torch.arange(len(self.images), device=self.images.device)
        self.active = torch.ones_like(self.rows, dtype=torch.bool)

    @abstractmethod
    def step(self, number: int) -> None:
        """Step `number`, from 1."""

    def standing(self) -> Tensor:
        """Images that are worth another step: (B,) bool."""
        if self.clear is None:
            self.clear = CLEAR * self.harm.margin.abs()
        return (self.harm.wrong < 1) | (self.harm.margin < self.clear)

    def run(self, steps: int) -> Tensor:
        """The worst points (B, C, H, W) after at most `steps` steps."""
        whole = self.worst.clone()
        for number in range(1, steps + 1):
            if self.victim.stop_when_wrong and self.victim.draws == 1:
                self._narrow(whole)
                if not len(self.rows):
                    break
            self.step(number)
        if len(self.rows):
            self.finish()
            self._store(whole, self.active)
        return whole

    def finish(self) -> None:  # noqa: B027 (nothing to do is the rule)
        """Work after the last step; by default none."""

    def keep(self, points: Tensor, judged: Judgment) -> None:
        """Keep those of `points` (B, C, H, W) that do more harm than the worst so far."""
        worse = judged.worse(self.harm)
        self.worst = torch.where(wide(worse), points, self.worst)
        self.harm = judged.where(worse, self.harm)

    def redraw(self, *path: int) -> None:
        """Take the draws of a path of `spawn`, and judge the worst points so far by them."""
        self.draws = spawn(self.seeds, *path)
        self.harm = self.victim.evaluate(self.worst, self.labels, seeds=self.draws)

    def _narrow(self, whole: Tensor) -> None:
        """Go on with the images that stand, and as many others as fill up the batch's size."""
        standing = self.active & self.standing()
        self._store(whole, self.active & ~standing)
        self.active = standing
        size = batch_size(int(standing.sum()))
        if size < len(self.rows):
            order = standing.to(torch.uint8).argsort(descending=True, stable=True)
            self._take(order[:size].sort().values)

    def _store(self, whole: Tensor, mask: Tensor) -> None:
        """Write down the worst points of the images in a mask (B,) bool."""
        whole[self.rows[mask]] = self.worst[mask]

    def _take(self, index: Tensor) -> None:
        """Forget all images but those of `index` (M,) int64."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value[index]
            elif isinstance(value, Judgment):
                value = Judgment(*(values[index] for values in value))
            elif isinstance(value, list):
                value = pick(value, index)
            setattr(self, name, value)


def batch_size(count: int) -> int:
    """The smallest of 0, 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ... of at least `count`.

    Few sizes, so that kernels compiled or tuned for a shape are used again; at most a quarter more
    images than needed.
    """
    step = 1
    while count > 8 * step:
        step *= 2
    return -(-count // step) * step
