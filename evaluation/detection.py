"""Likelihood of images to a defense's diffusion model, as a score that detects attacked images."""

from math import isfinite

import torch
from torch import Tensor, nn

from rdc.denoiser import PURIFYING, DenoiserLike
from rdc.estimates import unconditional
from rdc.images import to_x
from rdc.levels import Levels
from rdc.noise import Noise

STREAM = 300
"""The stream of these draws, which is that of no module of a defense."""


def denoiser_of(model: nn.Module) -> DenoiserLike | None:
    """The denoiser of the first part of a defense that has one; None for an ordinary classifier."""
    found = (getattr(part, "denoiser", None) for part in model.modules())
    return next((each for each in found if all(hasattr(each, name) for name in PURIFYING)), None)


def scores_of(model: nn.Module, images: Tensor, *, max_rows: int = 256) -> list[float | None]:
    """`log_likelihoods` of images to a defense, to four digits; None where it has no denoiser."""
    denoiser = denoiser_of(model)
    if denoiser is None:
        return [None] * len(images)
    found = log_likelihoods(denoiser, images, max_rows=max_rows).tolist()
    return [round(score, 4) if isfinite(score) else None for score in found]


@torch.no_grad()
def log_likelihoods(denoiser: DenoiserLike, images: Tensor, *, max_rows: int = 256) -> Tensor:
    """Unconditional log-likelihoods (B,) of images (B, C, H, W) in [0, 1], in nats.

        - integral_0.1^3 sigma^-3 E ||x - D(x + sigma n, sigma)||^2 dsigma,   x = 2 image - 1,

    from eight levels with one frozen draw each, the same for all images: the bound of Kingma et al.
    2021 (eq. 11) at noise 0.1, without its part that is the same for all images, and without the
    small one at noise 3.
    """
    return torch.cat([_of_rows(denoiser, part) for part in to_x(images).split(max_rows)])


def _of_rows(denoiser: DenoiserLike, x: Tensor) -> Tensor:
    levels = Levels.build(count=8, low=0.1, high=3.0, spacing="log", weighting="elbo")
    noise = Noise("frozen", stream=STREAM).normal(x, len(levels))
    errors = [
        (unconditional(denoiser, x + sigma * noise[:, level], sigma) - x).square().flatten(1).sum(1)
        for level, sigma in enumerate(levels.sigmas.to(x))
    ]
    return -(torch.stack(errors, 1) @ levels.weights.to(x))
