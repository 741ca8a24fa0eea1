"""Defenses that only look robust, around a real classifier: what the checks must not let pass.

Each says how it pretends. All take [0, 1] images of digits, and answer with logits of about the
right class.
"""

import torch
from torch import Tensor, nn

from rdc.choices import NoiseMode
from rdc.noise import Noise


class Fake(nn.Module):
    """Behaves until a subclass says otherwise."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


class Rounding(Fake):
    """Rounds pixels to five levels: the gradient is zero almost everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((4 * images).round() / 4)


class Vanishing(Fake):
    """A deep map pushes every pixel to 0 or 1, and its gradient below the smallest number."""

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(3):
            images = (200 * (images - 0.47)).sigmoid()
        return self.classifier(images)


class Saturated(Fake):
    """Probabilities, so sharp that they are 0 and 1, in place of logits."""

    def forward(self, images: Tensor) -> Tensor:
        return (100 * self.classifier(images)).softmax(1)


class Shattered(Fake):
    """Ripples on every pixel, finer than any step: exact gradients that lead nowhere."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images + 0.004 * (5000 * images).sin())


class Lattice(Fake):
    """Puts pixels back near the next of 17 gray levels: a true gradient of very short reach."""

    def forward(self, images: Tensor) -> Tensor:
        level = ((16 * images).round() / 16).detach()
        return self.classifier(level + (images - level).clamp(-0.002, 0.002))


class RandomPhase(Fake):
    """The ripples have a phase of their own in every draw: only many draws level them out."""

    def __init__(
        self, classifier: nn.Module, noise: NoiseMode = "frozen", *, frequency: float = 1000
    ) -> None:
        super().__init__(classifier)
        self.noise, self.frequency = Noise(noise), frequency

    def forward(self, images: Tensor) -> Tensor:
        phase = 10 * self.noise.normal(images, 1)[:, 0]
        return self.classifier(images + 0.05 * (self.frequency * images + phase).sin())


class RandomLabels(Fake):
    """One answer in twenty is any class, from a generator of its own."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        lost = torch.rand(len(images), generator=self.generator) < 0.05
        return torch.where(lost[:, None], logits.roll(1, 1), logits)


class StraightThrough(Fake):
    """A purifier whose derivative is said to be the identity."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images + (sharpened(images) - images).detach())


class HalfDetached(Fake):
    """Classify the mean of image and purified image, with no gradient through the purifier."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((images + sharpened(images).detach()) / 2)


def sharpened(images: Tensor) -> Tensor:
    blurred = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return (images + 0.5 * (images - blurred)).clamp(0, 1)


class Detached(Fake):
    """No way back to the images at all."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.detach())


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return images.clone()

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        return cotangent * ctx.saved_tensors[0], None


class Flipped(Fake):
    """The backward pass goes the other way."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(Scaled.apply(images, -torch.ones_like(images)))


class RightAtCleanImages(Fake):
    """The gradient is flipped wherever a pixel has been attacked: is none of 17 gray levels."""

    def forward(self, images: Tensor) -> Tensor:
        clean = (16 * images - (16 * images).round()).abs() < 0.02
        return self.classifier(Scaled.apply(images, 2.0 * clean - 1))


class RightOneByOne(Fake):
    """The gradient is flipped in batches."""

    def forward(self, images: Tensor) -> Tensor:
        sign = 1.0 if len(images) == 1 else -1.0
        return self.classifier(Scaled.apply(images, torch.full_like(images, sign)))


class ForShow(Fake):
    """Shows attackers, who record gradients, a classifier of the images upside down."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.flip(2) if torch.is_grad_enabled() else images)


class Coupled(Fake):
    """Takes the batch's own mean image away: batch statistics at test time."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images - 0.5 * images.mean(0, keepdim=True))


class Remembers(Fake):
    """Gives any answer to images that resemble one that it was asked about before."""

    def __init__(self, classifier: nn.Module, memory: list[Tensor] | None = None) -> None:
        super().__init__(classifier)
        self.memory = [] if memory is None else memory

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        known = torch.zeros(len(images), dtype=torch.bool)
        if self.memory:
            changes = images.detach()[:, None] - torch.cat(self.memory)
            known = (changes.flatten(2).norm(dim=2) < 0.5).any(1)
        self.memory.append(images.detach().clone())
        return torch.where(known[:, None], logits.roll(1, 1), logits)


class Shared(list):
    """A memory that copies of its owner share."""

    def __deepcopy__(self, memo: dict) -> "Shared":
        return self
