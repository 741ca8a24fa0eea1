"""Augmentation on the device: draws for a whole batch at once, from the step's generator."""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images (B, C, H, W), left to right."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size, its border reflected into the gap."""
    batch, _, height, width = images.shape
    reach = max(1, height // 8)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    offsets = torch.randint(2 * reach + 1, (2, batch, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def geometry(
    images: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mirror, zoom, rotate, stretch and move, each with `probability`: images and features (B, 8).

    The network is told by the features, which are 0 for an image that was left alone and when
    sampling: what is drawn here does not leak into what it generates (Karras et al. 2022, appendix
    F.2, whose ranges these are: 2^(0.2 n) for zoom and stretch, any angle, n / 8 of the size).
    """
    batch, device = len(images), images.device

    def normal() -> Tensor:
        return torch.randn(batch, generator=generator, device=device)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)

    def sometimes(value: Tensor) -> Tensor:
        return torch.where(uniform() < probability, value, 0.0)

    mirrored = sometimes(torch.ones(batch, device=device))
    zoom, angle = sometimes(normal()), sometimes(pi * (2 * uniform() - 1))
    stretch, axis = sometimes(normal()), pi * (2 * uniform() - 1)
    move = sometimes(normal()), sometimes(normal())

    ones = torch.ones(batch, device=device)
    turned = diagonal(1 - 2 * mirrored, ones) @ rotation(-angle)
    zoomed = turned * (2 ** (-0.2 * zoom))[:, None, None]
    squeeze = diagonal(2 ** (-0.2 * stretch), 2 ** (0.2 * stretch))
    inverse = zoomed @ rotation(axis) @ squeeze @ rotation(-axis)
    # grid_sample's coordinates span 2 over the image: n / 8 of its size is n / 4 there.
    moved = -torch.stack(move, dim=1) / 4
    theta = torch.cat([inverse, inverse @ moved[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    features = torch.stack(
        [
            mirrored, zoom, angle.cos() - 1, angle.sin(),
            stretch * axis.cos(), stretch * axis.sin(), *move,
        ],
        dim=1,
    )  # fmt: skip
    alone = (features == 0).all(1)[:, None, None, None]
    return torch.where(alone, images, changed), features


def rotation(angle: Tensor) -> Tensor:
    """(B,) to (B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def diagonal(first: Tensor, second: Tensor) -> Tensor:
    """Two (B,) to (B, 2, 2)."""
    return torch.diag_embed(torch.stack([first, second], dim=1))
