"""Noise levels and their weights in the likelihood integral.

The diffusion loss of an image x is the integral over sigma of w(sigma) E ||x - D(x + sigma n)||^2.
`Levels` approximates it by nodes; a spacing says where they lie, a weighting what w is. Both are
densities over sigma, so that every spacing can be combined with every weighting.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rdc import vp
from rdc.choices import Spacing, Weighting

P_MEAN, P_STD = -1.2, 1.2  # EDM's training distribution of ln(sigma), Karras et al. 2022, table 1


def lognormal_density(sigma: Tensor) -> Tensor:
    """Density of sigma when ln(sigma) ~ N(P_MEAN, P_STD^2); integrates to 1."""
    z = (sigma.log() - P_MEAN) / P_STD
    return (-z.square() / 2).exp() / (sigma * P_STD * math.sqrt(2 * math.pi))


def weight(sigma: Tensor, weighting: Weighting, *, sigma_data: float = 0.5) -> Tensor:
    """w(sigma) of the diffusion loss, the squared error summed over pixels.

    "elbo": sigma^-3. The integral from s to infinity is KL(N(x, s^2) || p_s), the exact price in
        nats of explaining x at noise s (I-MMSE; Kingma et al. 2021, eq. 11-15, in sigma).
    "edm": EDM's training loss (Karras et al. 2022, table 1), log-normal density times
        (sigma^2 + sigma_data^2) / (sigma sigma_data)^2; the density integrates to 1.
    "published": the same with the density of the authors' released code, which multiplies by
        P_std^2 where the log-normal divides, and integrates to 1 / P_std^2 = 0.694.
    "epsilon": the unweighted error in the noise, averaged over VP time: density of vp.sigma(t),
        t uniform, over sigma^2; the density integrates to 1.
    """
    if weighting == "elbo":
        return sigma**-3
    if weighting == "epsilon":
        return vp.sigma_density(sigma) / sigma.square()
    scale = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    if weighting == "edm":
        return scale * lognormal_density(sigma)
    if weighting == "published":
        slip = (-(sigma.log() - P_MEAN).square() / 2 * P_STD**2).exp()
        return scale * slip / (sigma * P_STD * math.sqrt(2 * math.pi))
    raise ValueError(f"weighting={weighting!r} must be one of {get_args(Weighting)}")


def nodes(spacing: Spacing, count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """`count` noise levels in [low, high] and the width of sigma that each stands for, float64.

    "uniform": the authors' grid, the left ends of equal intervals (a first-order rule).
    "log", "lognormal", "vp": midpoints of equal quantiles of ln(sigma) uniform, of EDM's
        log-normal, and of the VP process with uniform time (second-order rules).
    """
    if not 0 < low < high or count < 1:
        raise ValueError(
            f"noise levels need 0 < low < high and count >= 1, got low={low}, high={high}, "
            f"count={count}"
        )
    if spacing == "uniform":
        edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
        return edges[:-1], edges.diff()
    bounds = torch.tensor([low, high], dtype=torch.float64)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if spacing == "log":
        a, b = bounds.log()
        sigma = (a + (b - a) * u).exp()
        return sigma, sigma * (b - a) / count
    if spacing == "lognormal":
        a, b = torch.special.ndtr((bounds.log() - P_MEAN) / P_STD)
        sigma = (P_MEAN + P_STD * torch.special.ndtri(a + (b - a) * u)).exp()
        return sigma, (b - a) / (count * lognormal_density(sigma))
    if spacing == "vp":
        a, b = vp.time(bounds)
        sigma = vp.sigma(a + (b - a) * u)
        return sigma, (b - a) / (count * vp.sigma_density(sigma))
    raise ValueError(f"spacing={spacing!r} must be one of {get_args(Spacing)}")


@dataclass(frozen=True)
class Levels:
    """Noise levels (T,) and the weight of each one's squared error (T,), float64.

    A level drawn several times stands there several times, with its weight divided among them.
    `weighting` and the stretch [`low`, `high`] of sigma say what they integrate.
    """

    sigmas: Tensor
    weights: Tensor
    weighting: Weighting
    low: float
    high: float

    @classmethod
    def build(
        cls,
        *,
        count: int,
        low: float,
        high: float,
        spacing: Spacing = "log",
        weighting: Weighting = "elbo",
        draws: int = 1,
        sigma_data: float = 0.5,
    ) -> "Levels":
        """`count` levels in [low, high], each with `draws` independent noises."""
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        with torch.device("cpu"):  # whatever torch's default is
            sigmas, widths = nodes(spacing, count, low, high)
            weights = weight(sigmas, weighting, sigma_data=sigma_data) * widths / draws
        return cls(sigmas.repeat(draws), weights.repeat(draws), weighting, low, high)

    def __len__(self) -> int:
        return len(self.sigmas)
