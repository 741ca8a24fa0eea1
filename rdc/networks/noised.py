"""A denoiser of images that already carry Gaussian noise: noised diffusion classifiers."""

import torch
from torch import Tensor, nn

from rdc.denoiser import (
    CLASSIFYING,
    DenoiserLike,
    NoisyClassifier,
    OneClassAtATime,
    per_image,
    require_parts,
)


class NoisedDenoiser(nn.Module):
    """Denoiser of the noised data x0 + tau n, made from the denoiser of the data x0.

    For noise of level u on top, with s^2 = u^2 + tau^2,

        E[x0 + tau n | x, u] = (tau^2 / s^2) x + (u^2 / s^2) D(x, s),

    exactly if D is exact. A `DiffusionClassifier` on it estimates log p_tau(x | y), the likelihood
    of an image at noise tau: the exact posterior noised diffusion classifier (EPNDC; Chen et al.,
    NeurIPS 2024, arXiv 2402.02316). Near u = 0 use pairs of opposite draws
    (`ClassifierConfig(antithetic=True)`), whose large class-independent part cancels.

    tau: 0 or more, on the scale of [-1, 1]; smoothing with sigma on [0, 1] images is tau = 2 sigma.
    Implements `DenoiserLike`, and `OneClassAtATime` and `NoisyClassifier` where the denoiser does.

    Raises:
        ValueError: tau is negative or not finite, or the denoiser is not a `DenoiserLike`.
    """

    def __init__(self, denoiser: DenoiserLike, tau: float) -> None:
        super().__init__()
        require_parts(denoiser, (*CLASSIFYING, "denoise"))
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau={tau!r} must be 0 or more, the noise on the scale of [-1, 1]")
        self.denoiser = denoiser
        self.tau = tau
        self.num_classes = denoiser.num_classes
        self.image_shape = denoiser.image_shape
        self.class_names = denoiser.class_names
        self.rows_per_image = denoiser.rows_per_image

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 + tau n | x, sigma]: (B, C, H, W)."""
        total = self._total(x, sigma)
        return self._blend(x, self.denoiser.denoise(x, total), total)

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The same for every class: (B, K, C, H, W)."""
        total = self._total(x, sigma)
        return self._blend(x, self.denoiser.denoise_classes(x, total), total)

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """The same for one class of each image, labels (B,): (B, C, H, W)."""
        if not isinstance(self.denoiser, OneClassAtATime):
            raise TypeError(f"denoiser: {type(self.denoiser).__name__} has no denoise_class")
        total = self._total(x, sigma)
        return self._blend(x, self.denoiser.denoise_class(x, total, labels), total)

    def class_log_posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p(y | x, sigma) for every class, x being noised data with noise sigma: (B, K)."""
        if not isinstance(self.denoiser, NoisyClassifier):
            raise TypeError(f"denoiser: {type(self.denoiser).__name__} has no class_log_posterior")
        return self.denoiser.class_log_posterior(x, self._total(x, sigma))

    def _total(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """s = sqrt(sigma^2 + tau^2) of each image: (B,)."""
        sigma = per_image(sigma, x)
        return torch.hypot(sigma, torch.full_like(sigma, self.tau))

    def _blend(self, x: Tensor, denoised: Tensor, total: Tensor) -> Tensor:
        """(tau^2 / s^2) x + (1 - tau^2 / s^2) D, with a class axis where `denoised` has one."""
        kept = (self.tau / total).square().view(-1, *[1] * (denoised.ndim - 1))
        x = x[:, None] if denoised.ndim == x.ndim + 1 else x
        return kept * x + (1 - kept) * denoised
