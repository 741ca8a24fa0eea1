"""What a denoiser is asked to predict: the image itself, or a teacher's estimate for every class.

Plain denoising supervises the true class's head alone; the other heads never learn what their
class would look like here, and the comparison between classes is what a diffusion classifier lives
on. A teacher answers for all classes at once, on any input. Its best form on a small data set is
free: the exact denoiser of the training images (`rdc.OptimalDenoiser`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rdc.config import require
from rdc.denoiser import DenoiserLike


@dataclass(frozen=True)
class NoiseConfig:
    """ln(sigma) ~ N(`mean`, `std`^2); EDM's default for natural images is -1.2 and 1.2."""

    mean: float = -1.2
    std: float = 1.2


@dataclass(frozen=True)
class ObjectiveConfig:
    """`image_share`: the part of each batch that learns to predict its own image (all of it without
    a teacher); the rest learns the teacher's K + 1 estimates.

    `off_data`: largest change of a pixel, on [0, 1], by which the teacher's part leaves the data
    before noise is added: each image moves towards another one or in a random direction. Attacks
    leave the data too, and a teacher that is defined there can say what is right.
    `label_dropout`: share of unconditional rows in label-conditional training.
    """

    noise: NoiseConfig = NoiseConfig()
    image_share: float = 0.5
    off_data: float = 0.0
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        require(
            self,
            image_share=(0 <= self.image_share <= 1, "in [0, 1]"),
            off_data=(0 <= self.off_data <= 1, "in [0, 1]"),
            label_dropout=(0 <= self.label_dropout <= 1, "in [0, 1]"),
        )


def lattice_sigmas(count: int, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """`count` log-normal noise levels at equal quantiles under one random offset: (count,).

    One draw covers the whole distribution, which takes most of the sampling noise of sigma out of
    the loss (Kingma et al. 2021, appendix I.1).
    """
    on = {"generator": generator, "device": generator.device}
    offset = torch.rand(1, dtype=torch.float64, **on)
    u = (torch.arange(count, device=generator.device) + offset) / count
    sigma = (config.mean + config.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))).exp()
    return sigma[torch.randperm(count, **on)].float()


def leave_data(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """x (B, C, H, W) in [-1, 1] moved by at most `radius` per pixel, and kept in [-1, 1].

    Half of the images move towards another one of the batch, half by uniform noise; the share of
    `radius` used is uniform per image.
    """
    on = {"generator": generator, "device": generator.device}
    reach = radius * torch.rand(len(x), 1, 1, 1, **on)
    other = x[torch.randperm(len(x), **on)]
    towards = (other - x).clamp(-reach, reach)
    random = reach * (2 * torch.rand(x.shape, **on) - 1)
    pick = torch.rand(len(x), 1, 1, 1, **on) < 0.5
    return (x + torch.where(pick, towards, random)).clamp(-1, 1)


def weighted(error: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weight lambda(sigma) on a mean squared error (B,) (Karras et al. 2022, table 1)."""
    return error * (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def image_losses(denoised: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Squared error (B,) of two heads of (B, K + 1, C, H, W): the true class, unconditional."""
    rows = torch.arange(len(x), device=x.device)
    own = torch.stack([denoised[rows, labels], denoised[:, -1]], dim=1)
    return (own - x[:, None]).square().mean((1, 2, 3, 4))


def teacher_losses(
    denoised: Tensor, teacher: DenoiserLike, noised: Tensor, sigma: Tensor
) -> Tensor:
    """Squared error (B,) of all K + 1 heads against the teacher's estimates."""
    with torch.no_grad():
        targets = torch.cat(
            [teacher.denoise_classes(noised, sigma), teacher.denoise(noised, sigma)[:, None]], dim=1
        )
    return (denoised - targets).square().mean((1, 2, 3, 4))
