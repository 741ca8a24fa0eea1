"""Analytic denoisers, written independently of the library's own: Gaussians and their mixtures.

They go through the score, D = x + sigma^2 grad log p_sigma(x) (Tweedie), with the density summed
component by component.
"""

import math

import torch
from torch import Tensor


class MixtureDenoiser:
    """Class y is a mixture of isotropic Gaussians N(means[y, j], std^2); float64.

    means: (K, J, C, H, W). With J = 1 each class is one Gaussian. Implements `DenoiserLike`.
    """

    rows_per_image = 1
    class_names: tuple[str, ...] = ()

    def __init__(self, means: Tensor, std: float) -> None:
        self.means = means.double()
        self.std = std
        self.num_classes = len(means)
        self.image_shape = (means.shape[2], means.shape[3], means.shape[4])

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p_sigma(x | y): (B, K)."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        variance = (sigma.square() + self.std**2)[:, None, None]
        distance = (x[:, None, None] - self.means).square().sum((3, 4, 5))
        d = x[0].numel()
        density = -distance / (2 * variance) - d / 2 * (2 * math.pi * variance).log()
        return density.logsumexp(2) - math.log(self.means.shape[1])

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return torch.stack(
            [self._tweedie(x, sigma, lambda d, y=y: d[:, y]) for y in range(self.num_classes)], 1
        )

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._tweedie(x, sigma, lambda d: d.logsumexp(1))

    def _tweedie(self, x: Tensor, sigma: Tensor | float, reduce) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        with torch.enable_grad():
            y = x if x.requires_grad else x.detach().requires_grad_()
            density = reduce(self.log_density(y, sigma)).sum()
            (score,) = torch.autograd.grad(density, y, create_graph=x.requires_grad)
        return x + sigma.square()[:, None, None, None] * score


def two_classes(seed: int = 0, *, components: int = 2, std: float = 0.3) -> MixtureDenoiser:
    """Two classes of `components` Gaussians each on 1x2x2 images, overlapping at noise 0.5."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(2, components, 1, 2, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.6
    return MixtureDenoiser(means, std)


def some_images(
    count: int, shape: tuple[int, ...] = (1, 2, 2), *, seed: int = 1, dtype=torch.float64
) -> Tensor:
    """Uniform images (count, *shape) in [0.1, 0.9]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(count, *shape, generator=generator, dtype=torch.float64).to(dtype)


def central_difference(function, x: Tensor, direction: Tensor, step: float = 1e-5) -> Tensor:
    """d function(x + t direction) / dt at 0, for a scalar function in float64."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)
