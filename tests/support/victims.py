"""Models to attack whose best perturbations are known in closed form, and random ones."""

import torch
from torch import Tensor, nn

from evaluation.attacks.losses import margin
from rdc.choices import NoiseMode
from rdc.noise import Noise
from tests.support.oracle import some_images


class Linear(nn.Module):
    """Logits that are linear in the image, float64, with weights of very different size."""

    def __init__(self, classes: int = 2, shape: tuple[int, ...] = (1, 4, 4)) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, pixels, generator=generator, dtype=torch.float64)
        scales = torch.logspace(-2, 0, pixels, dtype=torch.float64)
        self.weight = nn.Parameter(weight * scales, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


class NoisyImages(Linear):
    """The same behind additive Gaussian noise of the library's own kind: frozen, or fresh."""

    def __init__(self, classes: int = 2, *, std: float = 0.2, noise: NoiseMode = "frozen") -> None:
        super().__init__(classes)
        self.std, self.noise = std, Noise(noise)

    def forward(self, images: Tensor) -> Tensor:
        drawn = self.noise.normal(images, 1)[:, 0]
        return super().forward(images + self.std * drawn)


class NoisyLogits(Linear):
    """The same with Gaussian noise on the margin of its two classes: the first pixel's draw."""

    def __init__(self, *, std: float, noise: NoiseMode = "frozen") -> None:
        super().__init__()
        self.std, self.noise = std, Noise(noise)

    def forward(self, images: Tensor) -> Tensor:
        drawn = self.noise.normal(images, 1)[:, 0, 0, 0, 0]
        logits = super().forward(images)
        return logits + self.std * torch.stack([drawn, torch.zeros_like(drawn)], 1)


class NoGradient(Linear):
    """A model that fails if its gradient is asked for."""

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return super().forward(images)


IMAGES = 0.3 + 0.4 * some_images(20, (1, 4, 4))


def labels_of(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    return model(images).argmax(1)


LABELS = labels_of(Linear())


def smallest_eps(model: Linear, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """|margin| over the dual norm of the difference of weights, for the nearest class (B,).

    Holds where the box does not bind.
    """
    logits = model(images)
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = model.weight[labels][:, None] - model.weight
    duals = slopes.abs().sum(2) if norm == "linf" else slopes.norm(dim=2)
    distances = torch.where(gaps > 0, gaps / duals, torch.inf)
    assert (margin(logits, labels) < 0).all()
    return distances.amin(1)
