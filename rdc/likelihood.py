"""How well each class explains an image: squared errors, diffusion losses, log-likelihood bounds.

x is (B, C, H, W) in [-1, 1]; noise is (B, T, C, H, W), or (1, T, C, H, W) to share the draws among
the images. All classes always see the same draws (common random numbers): the noise then cancels
in the differences between classes, which are all that the posterior depends on.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from rdc.denoiser import DenoiserLike
from rdc.gradients import recompute
from rdc.noise import Levels

# Pixels per network call. On a CPU a small call stays in the cache; a GPU wants it large.
CHUNK_PIXELS = {"cpu": 2**16, "cuda": 2**21}


def chunk_rows(denoiser: DenoiserLike, x: Tensor) -> int:
    """Noised images per call of `denoise_classes`, on x's device and at x's image size."""
    pixels = denoiser.rows_per_image * x.shape[2] * x.shape[3]
    return max(1, CHUNK_PIXELS.get(x.device.type, 2**20) // pixels)


def class_errors(
    denoiser: DenoiserLike, x: Tensor, sigmas: Tensor, noise: Tensor, *, chunk: int | None = None
) -> Tensor:
    """||x - D(x + sigma_t noise_t, sigma_t, y)||^2 summed over pixels: (B, K, T).

    Images and levels fold into rows, and `chunk` rows (default: by device and image size) go
    through the network at a time. Gradients flow to x; where one call does not hold all rows,
    backward recomputes each call, so that memory stays that of one.
    """
    batch, count = len(x), len(sigmas)
    chunk = chunk or chunk_rows(denoiser, x)
    sigmas = sigmas.to(x)
    image = torch.arange(batch, device=x.device).repeat_interleave(count)
    level = torch.arange(count, device=x.device).repeat(batch)
    draw = image if len(noise) > 1 else torch.zeros_like(image)

    def errors(clean: Tensor, rows: Tensor) -> Tensor:
        sigma = sigmas[level[rows]]
        noised = clean + sigma[:, None, None, None] * noise[draw[rows], level[rows]]
        residual = denoiser.denoise_classes(noised, sigma) - clean[:, None]
        # The losses of the classes are large and nearly equal: at least float32 from here on.
        residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return residual.square().sum((2, 3, 4))

    pieces = torch.arange(batch * count, device=x.device).split(chunk)
    if len(pieces) == 1:
        rows = errors(x[image], pieces[0])
    else:
        rows = torch.cat(
            [recompute(lambda c, rows=rows: errors(c, rows), x[image[rows]]) for rows in pieces]
        )
    return rearrange(rows, "(b t) k -> b k t", b=batch)


def class_losses(
    denoiser: DenoiserLike, x: Tensor, levels: Levels, noise: Tensor, *, chunk: int | None = None
) -> Tensor:
    """The weighted diffusion loss of every class: (B, K); lower explains x better."""
    errors = class_errors(denoiser, x, levels.sigmas, noise, chunk=chunk)
    return errors @ levels.weights.to(errors)


def log_likelihood(
    denoiser: DenoiserLike, x: Tensor, levels: Levels, noise: Tensor, *, prior_std: float = 0.5
) -> Tensor:
    """Lower bound on E_n log p_s(x + s n | y) in nats, s the lowest noise level: (B, K).

    `levels` must be weighted by "elbo" and cover [s, S] densely. With p_S modelled as
    N(0, S^2 + prior_std^2),

        - integral_s^S sigma^-3 E ||x - D||^2 dsigma - KL(N(x, S^2) || p_S) - d/2 ln(2 pi e s^2),

    an equality for the exact denoiser up to quadrature and p_S (Kingma et al. 2021, eq. 11; the
    pointwise form is Kong et al. 2023, eq. 9). As s -> 0 it becomes a bound on log p(x | y).
    """
    if levels.weighting != "elbo":
        raise ValueError(
            f"levels: weighted by {levels.weighting!r}, but only weighting='elbo' is in nats"
        )
    low, high = levels.low, levels.high
    d = x[0].numel()
    total = high**2 + prior_std**2
    prior = 0.5 * (
        x.flatten(1).square().sum(1) / total + d * (high**2 / total - 1 - math.log(high**2 / total))
    )
    entropy = 0.5 * d * math.log(2 * math.pi * math.e * low**2)
    return -class_losses(denoiser, x, levels, noise) - prior[:, None] - entropy
