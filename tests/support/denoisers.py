"""Denoisers with random weights, RDC on one of them, and one without a network."""

import torch
from torch import Tensor

from rdc import (
    ClassifierConfig,
    Denoiser,
    DenoiserConfig,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
    UNetConfig,
)

TINY = UNetConfig(
    image_size=8, channels=1, num_classes=3, width=8, width_multipliers=(1, 1),
    attention_resolutions=(4,), blocks_per_level=1, head_blocks=1, head_width=4,
)  # fmt: skip

SMALL = RDCConfig(
    ClassifierConfig(levels=3, sigma_min=0.5, sigma_max=2),
    MaximizationConfig(steps=2, budget=0.1, step_size=0.01, momentum=0.5, draws=2),
)


def random_denoiser(dtype=torch.float64, conditioning="multihead") -> Denoiser:
    """A tiny network whose zero-started layers are randomized too."""
    torch.manual_seed(0)
    config = UNetConfig(**{**TINY.__dict__, "conditioning": conditioning})
    denoiser = Denoiser(DenoiserConfig(config)).to(dtype).requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser.eval()


def small_rdc(dtype=torch.float64, **options) -> RobustDiffusionClassifier:
    return RobustDiffusionClassifier(random_denoiser(dtype), SMALL, **options)


class Scaling:
    """A denoiser without a network: 3 channels, any size, shrinks what it sees."""

    rows_per_image, num_classes = 1, 1
    class_names: tuple[str, ...] = ()

    def __init__(self, size: int, channels: int = 3, broken_below: float = 0.0) -> None:
        self.image_shape = (channels, size, size)
        self.broken_below = broken_below

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return 0.9 * x * (float("nan") if float(sigma) < self.broken_below else 1)

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.denoise(x, sigma)[:, None]
