"""Noise in images, to tell a purifier that adds some from one that removes it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NOTICED = 0.01
"""Standard deviation of noise on [0, 1] that is visible: 2.5/255."""


def noise_level(images: Tensor) -> Tensor:
    """Estimate the standard deviation of the noise in each of the images (B, C, H, W): (B,).

        sqrt(pi / 2) / 6 mean |image * M|,   M = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]

    (Immerkaer, Computer Vision and Image Understanding 64, 1996). M ignores gradients and straight
    edges, but fine texture counts as noise: compare images of the same content. Images of less
    than 3x3 pixels, too small for M, have 0.
    """
    if min(images.shape[2:]) < 3:
        return images.new_zeros(len(images))
    line = images.new_tensor([1.0, -2.0, 1.0])
    mask = torch.outer(line, line).expand(images.shape[1], 1, 3, 3)
    found = F.conv2d(images, mask, groups=images.shape[1])
    return math.sqrt(math.pi / 2) / 6 * found.abs().mean((1, 2, 3))


def added_noise(before: float, after: float) -> str | None:
    """A sentence if purified images are visibly noisier than the given ones, by `noise_level`."""
    if after <= before + NOTICED:
        return None
    return (
        "purified images are noisier than the given ones: an estimated standard deviation of "
        f"{after:.3f} after {before:.3f}; more steps or a longer training of the denoiser may help"
    )
