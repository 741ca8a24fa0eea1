"""Perturbations of low spatial frequency, which purification by noise removes least."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.pgd import Ascent
from evaluation.attacks.validation import checked, prepared
from rdc.choices import Norm


@prepared
def low_frequency(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    block: int = 4,
    steps: int = 40,
    loss: Loss = margin,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """`pgd`, from the images, whose change is constant on blocks of `block` x `block` pixels.

    Block means instead of the low cosine coefficients of Guo et al. (2018, "Low frequency
    adversarial perturbation"): they keep sign steps and both budgets exact. Only the box [0, 1]
    breaks a block. Where `block` does not divide the sides, blocks differ by a pixel.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, steps=steps)
    height, width = images.shape[2:]
    if not 1 <= block <= min(height, width):
        raise ValueError(f"block={block} must be from 1 to the image's side {min(height, width)}")
    if eps == 0:
        return images

    down, across = (_averaging(side, block, images) for side in (height, width))
    ascent = Ascent(
        Expectation.of(model), images, labels, seeds, start=images, eps=eps, norm=norm, loss=loss,
        step_size=2.5 * eps / steps, restrict=lambda gradient: down @ gradient @ across,
    )  # fmt: skip
    return ascent.run(steps)


def _averaging(side: int, block: int, like: Tensor) -> Tensor:
    """Matrix (side, side) that replaces each pixel by the mean of its block."""
    count = -(-side // block)
    member = torch.arange(side, device=like.device) * count // side
    same = (member[:, None] == member).to(like)
    return same / same.sum(1)
