"""Objectives of denoisers: the image itself, its class, or a teacher's estimate for every class.

Plain denoising supervises the head of the true class alone; the other heads never learn their
class's estimate on this image, and a diffusion classifier compares all of them. A teacher gives
estimates for all classes, on any input: the exact denoiser of a small data set
(`rdc.OptimalDenoiser`), a label-conditional network, or an unconditional one with a classifier of
noised images, whose gradients turn its estimate into those of the classes.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn

from rdc.denoiser import Denoiser, DenoiserLike
from training.objective_config import NoiseConfig


class Uncertainty(nn.Module):
    """u(sigma), the logarithm of the loss that is to be expected at each noise level.

    The loss becomes loss / exp(u) + u, whose minimum over u is at exp(u) = E[loss | sigma]: every
    level then counts alike (Karras et al. 2024, "EDM2", section 2; Kendall et al. 2018). It starts
    at u = 0, the unweighted loss.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1, 33) * pi / 4, persistent=False)
        self.linear = nn.Linear(64, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """(B,) to (B,)."""
        angles = sigma.log()[:, None] / 4 * self.frequencies
        return self.linear(torch.cat([angles.cos(), angles.sin()], dim=1))[:, 0]


class Learner(nn.Module):
    """The denoiser, and u(sigma) where it is learned: all that an optimizer trains together."""

    def __init__(self, denoiser: Denoiser, *, uncertainty: bool) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.uncertainty = Uncertainty() if uncertainty else None

    def forward(self, part: "NoisedBatch") -> tuple[Tensor, Tensor | None, Tensor]:
        """The network's estimates, its logits or None, and u(sigma) of the estimates (B,)."""
        logits = None
        if self.denoiser.has_classifier:
            taught = slice(part.plain, None)
            logits = self.denoiser(part.noised[taught], part.sigma[taught], outputs="logits")
            part = part.part(slice(part.plain))
        denoised = self.denoiser(part.noised, part.sigma, labels=part.labels, augment=part.augment)
        u = torch.zeros_like(part.sigma)
        return denoised, logits, u if self.uncertainty is None else self.uncertainty(part.sigma)


@dataclass(frozen=True)
class NoisedBatch:
    """Images x (B, C, H, W) in [-1, 1], labels (B,), sigma (B,), noised = x + sigma * noise.

    The first `plain` rows learn their own image, the others a teacher's estimates for `classes`
    (B, c), or for all classes when that is None. `augment` tells what was done to the images.
    """

    x: Tensor
    labels: Tensor
    sigma: Tensor
    noised: Tensor
    plain: int
    classes: Tensor | None = None
    augment: Tensor | None = None

    def part(self, rows: slice) -> "NoisedBatch":
        return NoisedBatch(
            self.x[rows],
            self.labels[rows],
            self.sigma[rows],
            self.noised[rows],
            len(range(len(self.x))[: self.plain][rows]),
            None if self.classes is None else self.classes[rows],
            None if self.augment is None else self.augment[rows],
        )


def lattice_sigmas(count: int, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """`count` log-normal noise levels at equal quantiles under one random offset: (count,).

    One draw covers the whole distribution, which takes most of the sampling noise of sigma out of
    the loss (Kingma et al. 2021, appendix I.1).
    """
    on = {"generator": generator, "device": generator.device}
    offset = torch.rand(1, dtype=torch.float64, **on)
    u = (torch.arange(count, device=generator.device) + offset) / count
    sigma = (config.mean + config.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))).exp()
    return sigma[torch.randperm(count, **on)].float()


def leave_data(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """x (B, C, H, W) in [-1, 1] moved by at most `radius` per pixel, and kept in [-1, 1].

    Half of the images move toward another one of the batch, half by uniform noise; the share of
    `radius` used is uniform per image.
    """
    on = {"generator": generator, "device": generator.device}
    reach = radius * torch.rand(len(x), 1, 1, 1, **on)
    other = x[torch.randperm(len(x), **on)]
    toward = (other - x).clamp(-reach, reach)
    random = reach * (2 * torch.rand(x.shape, **on) - 1)
    pick = torch.rand(len(x), 1, 1, 1, **on) < 0.5
    return (x + torch.where(pick, toward, random)).clamp(-1, 1)


def some_classes(
    labels: Tensor, count: int, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Each row's own class and `count` - 1 different ones at random: (B, count)."""
    order = torch.rand(len(labels), num_classes, generator=generator, device=labels.device).scatter(
        1, labels[:, None], -1.0
    )
    return order.argsort(dim=1)[:, :count]


def weighted(error: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weight lambda(sigma) on a mean squared error (B,) (Karras et al. 2022, table 1)."""
    return error * (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def image_losses(denoised: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Squared error (B,) of two heads of (B, K + 1, C, H, W): the true class, unconditional."""
    own = torch.stack([denoised[_rows(x), labels], denoised[:, -1]], dim=1)
    return (own - x[:, None]).square().mean((1, 2, 3, 4))


def teacher_losses(
    denoised: Tensor,
    teacher: DenoiserLike,
    noised: Tensor,
    sigma: Tensor,
    classes: Tensor | None = None,
) -> Tensor:
    """Squared error (B,) of the heads against the teacher's estimates.

    All K + 1 of them, or those of `classes` (B, c) and the unconditional one.
    """
    with torch.no_grad():
        if classes is None:
            targets = teacher.denoise_classes(noised, sigma)
        else:
            targets = estimates(teacher, noised, sigma, classes)
        targets = torch.cat([targets, teacher.denoise(noised, sigma)[:, None]], dim=1)
    if classes is not None:
        chosen = denoised[_rows(noised)[:, None], classes]
        denoised = torch.cat([chosen, denoised[:, -1:]], dim=1)
    return (denoised - targets).square().mean((1, 2, 3, 4))


def estimates(teacher: DenoiserLike, noised: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """The teacher's estimates for `classes` (B, c): (B, c, C, H, W), at the least cost."""
    if not isinstance(teacher, Denoiser) or teacher.multihead:
        return teacher.denoise_classes(noised, sigma)[_rows(noised)[:, None], classes]
    count = classes.shape[1]
    rows, levels = noised.repeat_interleave(count, 0), sigma.repeat_interleave(count)
    return teacher.denoise_class(rows, levels, classes.flatten()).unflatten(0, (-1, count))


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)
