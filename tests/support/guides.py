"""A small denoiser, a small smooth network, and every guidance term on them; all float64."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import AGDM, GDMP, ClassifierGuidance, ContrastiveGuidance, Guidance
from purification.guidance.base import Moment
from purification.processes import Point
from rdc import OptimalDenoiser
from tests.support.oracle import some_images

SHAPE = (1, 12, 12)  # as small as SSIM's window allows
CONFIG = PurifierConfig(t_star=0.1, steps=4)
BATCH = 3


class Smooth(nn.Module):
    """Images to 4 logits through 6 features, with curvature everywhere."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        first = torch.randn(6, size, generator=generator, dtype=torch.float64) * 0.2
        self.first = nn.Parameter(first)
        self.last = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))
        self.drop = nn.Dropout(0.5)

    def features(self, images: Tensor) -> Tensor:
        return self.drop(((images - 0.5).flatten(1) @ self.first.T).tanh())

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images) @ self.last.T


class Flat(nn.Module):
    """The same logits for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1)[:, :4] + torch.tensor([1.0, 2.0, 0.0, 0.0]).to(images)


def bank(count: int = 5) -> Tensor:
    """Logits of other images."""
    return Smooth().eval()(2 * some_images(count, SHAPE, seed=21) - 1).detach()


def mixture() -> OptimalDenoiser:
    """The exact denoiser of a mixture of four Gaussians."""
    x = 1.6 * some_images(4, SHAPE, seed=5) - 0.8
    return OptimalDenoiser(x, torch.tensor([0, 0, 1, 1]), bandwidth=0.3)


def purifier(*guidance: tuple[float, Guidance], config=CONFIG, **options) -> DiffusionPurifier:
    return DiffusionPurifier(mixture(), config, guidance=guidance, **options)


Maker = Callable[[], tuple[float, Guidance]]
ALONE: dict[str, Maker] = {
    "gdmp": lambda: (3000.0, GDMP()),
    "gdmp-clean": lambda: (1e5, GDMP(reference="clean", schedule="constant")),
    "gdmp-ssim": lambda: (100.0, GDMP(distance="ssim")),
    "gdmp-ssim-clean": lambda: (100.0, GDMP(distance="ssim", reference="clean")),
    "coup": lambda: (10.0, ClassifierGuidance(Smooth())),
    "classifier": lambda: (10.0, ClassifierGuidance(Smooth(), label="input")),
    "agdm": lambda: (3.0, AGDM(Smooth(), class_weight=0.5)),
    "agdm-kl": lambda: (10.0, AGDM(Smooth(), distance="kl")),
    "agdm-features": lambda: (3.0, AGDM(Smooth(), representation="features", class_weight=0.0)),
    "contrastive": lambda: (3.0, ContrastiveGuidance(Smooth(), bank=bank())),
    "contrastive-pixels": lambda: (
        3.0, ContrastiveGuidance(Smooth(), bank=bank(), inputs="pixels", tau=0.5, drift_min=1)
    ),
}  # fmt: skip
"""weight and term by name, those whose images do not see each other"""
COUPLED: dict[str, Maker] = {
    "gdmp-actual": lambda: (100.0, GDMP(reference_batch="actual")),
    "contrastive-batch": lambda: (20.0, ContrastiveGuidance(Smooth(), negatives="batch")),
    "contrastive-all": lambda: (
        20.0, ContrastiveGuidance(Smooth(), negatives="batch", pairs="all", tau=0.5)
    ),
}  # fmt: skip
TERMS = ALONE | COUPLED


def given(count: int = BATCH) -> Tensor:
    """Images to purify."""
    return some_images(count, SHAPE, seed=8)


def direction(count: int = BATCH) -> Tensor:
    return some_images(count, SHAPE, seed=9) - 0.5


def noised(seed: int, count: int = BATCH) -> Tensor:
    """A state in [-1, 1] with some noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    return 2 * given(count) - 1 + 0.3 * noise


def moment(t: float = 0.08, k: int = 2) -> Moment:
    return Moment(k, Point.at(t), noised(31, 1) if t else None)
