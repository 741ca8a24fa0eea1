"""The variance-preserving process as a change of variables.

A VP state at time t in [0, 1] is `scale(t) * (x0 + sigma(t) * noise)` with (Song et al. 2021,
appendix C, written in EDM's variables, Karras et al. 2022, table 1)

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2,
    sigma(t) = sqrt(exp(B(t)) - 1),        scale(t) = exp(-B(t) / 2).

DDPM's discrete process has 1000 times; time index i is continuous time (i + 1) / 1000.
"""

from functools import cache

import torch
from torch import Tensor

BETA_MIN = 0.1
BETA_MAX = 20.0
TIMES = 1000


def integrated_beta(t: Tensor) -> Tensor:
    """B(t), the integral of beta from 0 to t."""
    return BETA_MIN * t + (BETA_MAX - BETA_MIN) * t.square() / 2


def beta(t: Tensor) -> Tensor:
    """beta(t), the rate of the process."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def sigma(t: Tensor) -> Tensor:
    """Noise level at time t, in units of the unscaled image."""
    return torch.expm1(integrated_beta(t)).sqrt()


def scale(t: Tensor) -> Tensor:
    """Factor on the image at time t."""
    return torch.exp(-integrated_beta(t) / 2)


def time(sigma: Tensor) -> Tensor:
    """The time at which the noise level is `sigma`: the inverse of `vp.sigma`."""
    slope = BETA_MAX - BETA_MIN
    total = torch.log1p(sigma.square())
    # The positive root of slope/2 t^2 + beta_min t = total, in the form that does not cancel.
    return 2 * total / (BETA_MIN + (BETA_MIN**2 + 2 * slope * total).sqrt())


def sigma_density(sigma: Tensor) -> Tensor:
    """Density of sigma(t) when t is uniform on [0, 1]: dt/dsigma."""
    return 2 * sigma / (beta(time(sigma)) * (1 + sigma.square()))


def deviation(t: Tensor) -> Tensor:
    """Standard deviation of the noise in a VP state at time t: scale(t) * sigma(t)."""
    return (-torch.expm1(-integrated_beta(t))).sqrt()


def betas() -> Tensor:
    """DDPM's discrete rates (1000,) float64, from 1e-4 to 0.02 (Ho et al. 2020, section 4)."""
    ends = BETA_MIN / TIMES, BETA_MAX / TIMES
    return torch.linspace(*ends, TIMES, dtype=torch.float64, device="cpu")


@cache
def _boundaries() -> Tensor:
    """Between the noise levels of DDPM's times, halfway: (999,) float64."""
    sigmas = (1 / (1 - betas()).cumprod(0) - 1).sqrt()
    return (sigmas[1:] + sigmas[:-1]) / 2


def index(sigma: Tensor) -> Tensor:
    """The time index of DDPM, 0 to 999, whose noise level is nearest to `sigma`: int64."""
    return torch.bucketize(sigma.contiguous(), _boundaries().to(sigma.device))
