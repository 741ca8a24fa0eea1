"""Perturbations of low spatial frequency, which purification by noise cannot wash out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.norms import Norm
from evaluation.attacks.pgd import climb
from evaluation.attacks.validation import checked


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
    return climb(
        Expectation.of(model), images, labels, images, eps=eps, norm=norm, steps=steps,
        step_size=2.5 * eps / steps, loss=loss, seeds=seeds,
        restrict=lambda gradient: down @ gradient @ across,
    )  # fmt: skip


def _averaging(side: int, block: int, like: Tensor) -> Tensor:
    """The matrix (side, side) that puts the mean of each block of pixels in place of them."""
    count = -(-side // block)
    member = torch.arange(side, device=like.device) * count // side
    same = (member[:, None] == member).to(like)
    return same / same.sum(1)
