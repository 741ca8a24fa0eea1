"""The exact denoiser of a finite data set, against which theory and tests are checked."""

import math

import torch
from torch import Tensor, nn

from rdc.config import short
from rdc.denoiser import per_image


class OptimalDenoiser(nn.Module):
    """Posterior mean under the empirical distribution of `x` (Chen et al. 2024, section 3.3).

    With data x_i and weights s_i = softmax_i(-||x - x_i||^2 / (2 v)), v = sigma^2 + bandwidth^2,

        D(x, sigma) = (bandwidth^2 x + sigma^2 sum_i s_i x_i) / v.

    A class estimate sums over the class alone; the unconditional one over all data with the classes
    equally likely. `bandwidth` > 0 replaces each image by a Gaussian of that width, so that one
    image is a Gaussian and several are a mixture, both with known density (`log_density`).
    Implements `DenoiserLike` and `NoisyClassifier`.

    x: (N, C, H, W) in [-1, 1]; labels: (N,) int64 with every class 0..K-1 present.
    """

    rows_per_image = 1
    class_names: tuple[str, ...] = ()
    points: Tensor
    present: Tensor
    log_prior: Tensor

    def __init__(self, x: Tensor, labels: Tensor, *, bandwidth: float = 0.0) -> None:
        super().__init__()
        whole = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1
        if not whole or not len(labels) or labels.min() < 0:
            raise ValueError(f"labels={short(labels)} must be (N,) int64, class numbers from 0")
        counts = torch.bincount(labels)
        if x.ndim != 4 or len(x) != len(labels):
            raise ValueError(
                f"x must be (N, C, H, W) with one label each, got x {tuple(x.shape)} and labels "
                f"{tuple(labels.shape)}"
            )
        if (counts == 0).any():
            raise ValueError(f"labels: no image of class {int((counts == 0).nonzero()[0])}")
        self.bandwidth = bandwidth
        self.num_classes = len(counts)
        channels, height, width = x.shape[1:]
        self.image_shape = (channels, height, width)
        # Classes padded to the same length (K, n, D), so that one einsum serves all of them.
        points = x.new_zeros(len(counts), int(counts.max()), x[0].numel())
        present = torch.zeros(points.shape[:2], dtype=torch.bool, device=x.device)
        for label, count in enumerate(counts.tolist()):
            points[label, :count] = x[labels == label].flatten(1)
            present[label, :count] = True
        self.register_buffer("points", points)
        self.register_buffer("present", present)
        self.register_buffer("log_prior", -counts.to(x.dtype).log())

    def _distances(self, x: Tensor) -> Tensor:
        """||x - x_i||^2, infinite at the padding: (B, K, n)."""
        x = x.flatten(1)
        products = torch.einsum("bd,knd->bkn", x, self.points)
        distances = x.square().sum(1)[:, None, None] + self.points.square().sum(2) - 2 * products
        return distances.masked_fill(~self.present, torch.inf)

    def _variance(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        variance = per_image(sigma, x).square()
        return variance[:, None, None], (variance + self.bandwidth**2)[:, None, None]

    def _blend(self, x: Tensor, mean: Tensor, noise: Tensor, total: Tensor) -> Tensor:
        return ((total - noise) * x.flatten(1)[:, None] + noise * mean) / total

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x, sigma, y] for every class y: (B, K, C, H, W)."""
        noise, total = self._variance(x, sigma)
        weights = torch.softmax(-self._distances(x) / (2 * total), dim=2)
        mean = torch.einsum("bkn,knd->bkd", weights, self.points)
        return self._blend(x, mean, noise, total).unflatten(2, self.image_shape)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x, sigma] with the classes equally likely: (B, C, H, W)."""
        noise, total = self._variance(x, sigma)
        scores = self.log_prior[:, None] - self._distances(x) / (2 * total)
        weights = torch.softmax(scores.flatten(1), dim=1)
        mean = (weights @ self.points.flatten(0, 1))[:, None]
        return self._blend(x, mean, noise, total).unflatten(2, self.image_shape)[:, 0]

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p_sigma(x | y) in nats, the data blurred by noise of level sigma: (B, K)."""
        _, total = self._variance(x, sigma)
        scores = self.log_prior[:, None] - self._distances(x) / (2 * total)
        constant = 0.5 * self.points.shape[2] * (2 * math.pi * total[:, :, 0]).log()
        return torch.logsumexp(scores, dim=2) - constant

    def class_log_posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p(y | x, sigma) with the classes equally likely a priori: (B, K)."""
        return self.log_density(x, sigma).log_softmax(1)
