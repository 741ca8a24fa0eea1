"""RDC as its authors released it, written from its formulas (Chen et al., ICML 2024).

Python loops over images and classes, 64 noise levels per call (32 with gradients) of the grid
linspace(1e-4, 3, 126), Adam for the maximization, and the identity for its derivative.
"""

import math

import torch
from torch import Tensor

from evaluation.attacks.losses import margin
from rdc import Denoiser


class Published:
    """RDC as published, on a label-conditional denoiser; images (1, C, H, W) in [0, 1].

    noise (T, C, H, W) is what the levels see, the same for all classes; the maximization sees
    `draws` (N, C, H, W) at the levels `sigmas` (N,).
    """

    def __init__(
        self, denoiser: Denoiser, *, levels: int, noise: Tensor, draws: Tensor, sigmas: Tensor
    ) -> None:
        self.denoiser, self.noise, self.draws, self.draw_sigmas = denoiser, noise, draws, sigmas
        times = torch.linspace(1e-4, 3, levels + 1, dtype=torch.float64)
        sigma = times[:-1]
        density = torch.exp(-((sigma.log() + 1.2) ** 2) / 2 * 1.2**2)
        density = density / (sigma * 1.2 * math.sqrt(2 * math.pi))
        weights = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * density * times.diff()
        self.sigmas, self.weights = sigma.to(noise), weights.to(noise)

    def maximize(self, image: Tensor) -> Tensor:
        """Adam at 0.1 on [-1, 1]; the released budget is beyond reach, so there is none."""
        moved = (2 * image - 1).detach().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=0.1)
        for noise, sigma in zip(self.draws, self.draw_sigmas, strict=True):
            optimizer.zero_grad()
            denoised = self.denoiser.denoise(moved + sigma * noise, sigma)
            (denoised - moved).square().mean().backward()
            optimizer.step()
        return ((moved + 1) / 2).clamp(0, 1).detach()

    def loss(self, x: Tensor, label: int, rows: Tensor) -> Tensor:
        """Contribution of some levels to the loss of one class."""
        sigma = self.sigmas[rows]
        noised = x + sigma[:, None, None, None] * self.noise[rows]
        labels = torch.full((len(rows),), label, device=x.device)
        errors = (self.denoiser.denoise_class(noised, sigma, labels) - x).square().mean((1, 2, 3))
        return (self.weights[rows] * errors).sum()

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """(1, K)"""
        x = 2 * image - 1
        logits = []
        for label in range(self.denoiser.num_classes):
            parts = torch.arange(len(self.sigmas), device=x.device).split(64)
            logits.append(-torch.stack([self.loss(x, label, rows) for rows in parts]).sum())
        return torch.stack(logits)[None]

    def gradient(self, image: Tensor, label: Tensor) -> Tensor:
        """Gradient of the margin: that of every class's logit first, then their sum."""
        logits, slopes = [], []
        for number in range(self.denoiser.num_classes):
            point = image.detach().requires_grad_()
            losses, slope = [], torch.zeros_like(image)
            for rows in torch.arange(len(self.sigmas), device=image.device).split(32):
                losses.append(self.loss(2 * point - 1, number, rows))
                slope += torch.autograd.grad(losses[-1], point)[0]
            logits.append(-torch.stack(losses).detach().sum())
            slopes.append(-slope)
        found = torch.stack(logits)[None].requires_grad_()
        (cotangent,) = torch.autograd.grad(margin(found, label).sum(), found)
        return (cotangent[0, :, None, None, None] * torch.cat(slopes)).sum(0, keepdim=True)

    def predict(self, images: Tensor) -> Tensor:
        return torch.cat([self.logits(self.maximize(image)) for image in images.split(1)])

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient that one step of an attack needs; the identity through the maximization."""
        pairs = zip(images.split(1), labels.split(1), strict=True)
        return torch.cat([self.gradient(self.maximize(image), label) for image, label in pairs])
