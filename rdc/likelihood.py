"""Likelihood of an image under each class: squared errors, diffusion losses, log-likelihood bounds.

x is (B, C, H, W) in [-1, 1]; noise is (B, T, C, H, W), or (1, T, C, H, W) to share the draws among
the images. All classes always see the same draws (common random numbers): the noise then cancels
in the differences between classes, which are all that the posterior depends on.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rdc.denoiser import DenoiserLike
from rdc.estimates import of_class, of_classes
from rdc.gradients import by_row
from rdc.levels import Levels

# Pixels per network call. On a CPU a small call stays in the cache; a GPU wants it large, but 512
# images of 32x32 fill one, and in the largest networks have 60 GB of activations for a gradient.
CHUNK_PIXELS = {"cpu": 2**16, "cuda": 2**19}


def chunk_rows(x: Tensor) -> int:
    """Network rows per call on x's device and at x's image size."""
    return max(1, CHUNK_PIXELS.get(x.device.type, 2**20) // (x.shape[2] * x.shape[3]))


def class_errors(
    denoiser: DenoiserLike, x: Tensor, sigmas: Tensor, noise: Tensor, *, chunk: int | None = None
) -> Tensor:
    """||x - D(x + sigma_t noise_t, sigma_t, y)||^2 summed over pixels: (B, K, T).

    A row of the network is an image at a level and, of a label-conditional one, a class. `chunk`
    rows (default: by device and image size) go through it at a time. Gradients flow to x, exactly;
    backward skips the rows on which the result does not depend: of a margin it takes those of the
    label and of the best wrong class (see `rdc.gradients.by_row`).
    """
    sigmas = sigmas.to(x)
    levels, classes = len(sigmas), denoiser.num_classes
    each = rows_per_image(denoiser)

    def errors(clean: Tensor, rows: Tensor) -> Tensor:
        """(M, K), or (M, 1) where a row has one class."""
        image, level = rows // each // levels, rows // each % levels
        drawn = noise[image if len(noise) != 1 else 0, level]
        noised = clean + sigmas[level][:, None, None, None] * drawn
        if each == 1:
            denoised = of_classes(denoiser, noised, sigmas[level])
        else:
            asked: Any = denoiser  # `rows_per_image` has seen that it has `denoise_class`
            denoised = of_class(asked, noised, sigmas[level], rows % each)[:, None]
        return squared_errors(denoised, clean[:, None])

    source = torch.arange(len(x), device=x.device).repeat_interleave(levels * each)
    found = by_row(errors, x, source, chunk=chunk or chunk_rows(x))
    return found.view(len(x), levels, classes).transpose(1, 2)


def squared_errors(denoised: Tensor, clean: Tensor) -> Tensor:
    """||denoised - clean||^2 of images (..., C, H, W) summed over pixels: (...)."""
    residual = denoised - clean
    # The losses of the classes are large and nearly equal: at least float32 from here on.
    residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
    return residual.square().sum((-3, -2, -1))


def rows_per_image(denoiser: DenoiserLike) -> int:
    """Network rows for all classes of one noised image: 1 or K."""
    each = denoiser.rows_per_image
    if each != 1 and not hasattr(denoiser, "denoise_class"):
        raise TypeError(
            f"denoiser: {type(denoiser).__name__} has rows_per_image={each} and so must have "
            "denoise_class(x, sigma, labels), one row per image"
        )
    return each


def class_losses(
    denoiser: DenoiserLike, x: Tensor, levels: Levels, noise: Tensor, *, chunk: int | None = None
) -> Tensor:
    """The weighted diffusion loss of every class: (B, K); lower explains x better."""
    errors = class_errors(denoiser, x, levels.sigmas, noise, chunk=chunk)
    with torch.autocast(x.device.type, enabled=False):  # which would round the sum to 8 bits
        return errors @ levels.weights.to(errors)


def log_likelihood(
    denoiser: DenoiserLike, x: Tensor, levels: Levels, noise: Tensor, *, prior_std: float = 0.5
) -> Tensor:
    """Lower bound on E_n log p_s(x + s n | y) in nats, s the lowest noise level: (B, K).

    `levels` must be weighted by "elbo" and cover [s, S] densely. With p_S modeled as
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
