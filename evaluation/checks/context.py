"""A model and a few images, as the attacks under check see them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eot import Expectation, Judgment
from evaluation.attacks.losses import margin
from evaluation.attacks.rng import pick, spawn
from evaluation.attacks.stadv import stadv
from evaluation.suite_config import Threat
from rdc.choices import Norm

UNSEEN = 2**31 + 2
"""The path of `spawn` that judges attacked images here: no attack has seen these draws."""


@dataclass(frozen=True)
class Subject:
    """images (B, C, H, W) in [0, 1], labels (B,) int64, a seed per image.

    `eps`, `steps` and `draws` are those of the evaluation that is checked.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    norm: Threat
    eps: float
    steps: int
    draws: int
    max_rows: int
    seeds: Sequence[int]

    @cached_property
    def victim(self) -> Expectation:
        """The model as it is attacked."""
        return Expectation(self.model, draws=self.draws, max_rows=self.max_rows)

    @cached_property
    def plain(self) -> Expectation:
        """The model as a plain call has it: one draw, the frozen one."""
        return Expectation(self.model, max_rows=self.max_rows)

    @cached_property
    def slope(self) -> tuple[Judgment, Tensor]:
        """The frozen draw's judgment of the images, and the gradient of its margin (B, C, H, W)."""
        return self.plain.gradient(self.images, self.labels, seeds=self.seeds)

    @cached_property
    def right_before(self) -> Tensor:
        return self.right(self.images)

    @property
    def ball(self) -> Norm:
        """The norm of a ball of images; for stadv, which has none, pixels may change by eps."""
        return self.norm if self.norm in ("linf", "l2") else "linf"

    def only(self, index: Tensor) -> Self:
        """The images `index` (M,) int64."""
        seeds = pick(self.seeds, index)
        return replace(self, images=self.images[index], labels=self.labels[index], seeds=seeds)

    def few(self, count: int) -> Self:
        """The first `count` images, or all where there are fewer."""
        return self.only(torch.arange(min(count, len(self.images)), device=self.images.device))

    def attack(self) -> Tensor:
        """Attacked images: APGD on the margin, or stadv."""
        options = {"eps": self.eps, "steps": self.steps, "seeds": self.seeds}
        if self.norm == "stadv":
            return stadv(self.victim, self.images, self.labels, **options)
        return apgd(self.victim, self.images, self.labels, norm=self.ball, loss=margin, **options)

    def logits(self, images: Tensor | None = None) -> Tensor:
        """The logits of the frozen draw (B, K), of `images` in place of the subject's own."""
        images = self.images if images is None else images
        return self.plain.logits(images, seeds=[0] * len(images))[:, 0]

    def right(self, images: Tensor) -> Tensor:
        """The share of draws unseen by any attack that give the label: (B,); 0 or 1 for one."""
        return 1 - self.victim.evaluate(images, self.labels, seeds=spawn(self.seeds, UNSEEN)).wrong
