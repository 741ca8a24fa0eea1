"""Samplers from noise to images: pure, differentiable functions of a denoiser's estimate."""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""x (B, C, H, W) = image in [-1, 1] + sigma * noise, sigma -> E[x0 | x, sigma]"""


def edm_sigmas(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """`steps` levels from `sigma_max` to `sigma_min`, and 0: (steps + 1,) float64 on the CPU.

    Karras et al. 2022, eq. 5. To purify an image that carries noise sigma, begin at that sigma.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: "
            "needs steps >= 1 and 0 < sigma_min < sigma_max"
        )
    ramp = torch.linspace(0, 1, max(2, steps), dtype=torch.float64, device="cpu")[:steps]
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)])


def heun_step(denoise: Denoise, x: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """One step of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma.

    Karras et al. 2022, algorithm 1: Heun's rule, Euler's for the step to 0.
    """
    step = next_sigma - sigma
    slope = (x - denoise(x, sigma)) / sigma
    moved = x + step * slope
    if next_sigma == 0:
        return moved
    after = (moved - denoise(moved, next_sigma)) / next_sigma
    return x + step * (slope + after) / 2


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow the probability-flow ODE from x at noise sigmas[0] through all of `sigmas`."""
    levels = sigmas.tolist()
    for sigma, next_sigma in pairwise(levels):
        x = heun_step(denoise, x, sigma, next_sigma)
    return x


def churned(x: Tensor, sigma: float, amount: float, noise: Tensor) -> tuple[Tensor, float]:
    """Raise the noise of x from sigma to (1 + amount) sigma with a unit draw (B, C, H, W).

    Before a step of `heun` it makes the sampler stochastic (Karras et al. 2022, algorithm 2, lines
    4 to 6, with gamma = amount and S_noise = 1).
    """
    raised = sigma * (1 + amount)
    return x + sqrt(raised**2 - sigma**2) * noise, raised
