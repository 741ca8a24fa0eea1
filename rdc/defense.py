"""A defense: a purifier in front of a classifier."""

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from rdc.noise import using_draws


class Defense(nn.Module):
    """`classifier(purifier(images))`: [0, 1] images (B, C, H, W) to logits (B, K).

    `purifier` maps [0, 1] images to [0, 1] images, `classifier` maps them to logits. Because a
    defense is an ordinary module, attack libraries take it as it is.

    `rdc.Defense(purifier, model)` defends an own model; where that takes normalized images, put
    `rdc.Normalize(mean, std)` in front of it.

    With `copies` > 1 every image is purified and classified that often, each time with other draws
    (see `rdc.noise.using_draws`), and the logits are the log of the mean probability. All draws of
    a batch are one batch for the networks.

    Raises:
        ValueError: purifier and classifier are of images of another shape, or of other numbers of
            classes, as far as the modules name them (`image_shape`, `num_classes`).
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module, *, copies: int = 1) -> None:
        super().__init__()
        if copies < 1:
            raise ValueError(f"copies={copies} must be at least 1")
        if not isinstance(purifier, nn.Module):
            raise TypeError(
                f"purifier: a {type(purifier).__name__} must be a torch.nn.Module; call it in the "
                "forward of one"
            )
        _require_fit(purifier, classifier)
        self.purifier = purifier
        self.classifier = classifier
        self.copies = copies

    def forward(self, images: Tensor) -> Tensor:
        if self.copies == 1:
            return self.classifier(self.purifier(images))
        return self.votes(images).log_softmax(2).logsumexp(1) - log(self.copies)

    def votes(self, images: Tensor) -> Tensor:
        """The logits of every draw (B, copies, K)."""
        numbers = list(range(self.copies))
        if batch_coupled(self):
            # The same image several times in a batch would change the effect of the batch on it.
            return torch.stack([self._copies(images, [number])[:, 0] for number in numbers], 1)
        return self._copies(images, numbers)

    def predict(self, images: Tensor) -> Tensor:
        """The class of most draws (B,) int64; of several, the most probable on average."""
        logits = self.votes(images)
        ballots = nn.functional.one_hot(logits.argmax(2), logits.shape[2]).sum(1)
        probabilities = logits.softmax(2).mean(1)
        most = ballots == ballots.amax(1, keepdim=True)
        return probabilities.masked_fill(~most, -1).argmax(1)

    def _copies(self, images: Tensor, numbers: list[int]) -> Tensor:
        rows = images.repeat_interleave(len(numbers), dim=0)
        with using_draws(numbers):
            logits = self.classifier(self.purifier(rows))
        return logits.unflatten(0, (len(images), len(numbers)))


def batch_coupled(module: nn.Module) -> bool:
    """True if an image's result depends on the other images of its batch, as with some guidance."""
    return any(getattr(part, "batch_coupled", False) for part in module.modules())


def _require_fit(purifier: nn.Module, classifier: nn.Module) -> None:
    """Compare shapes and class counts, as far as the modules know theirs."""
    shape, expected = _known(purifier, "image_shape"), _known(classifier, "image_shape")
    resizes = getattr(getattr(purifier, "config", None), "resize", False)
    if shape and expected and (shape[0] != expected[0] or (shape != expected and not resizes)):
        raise ValueError(
            f"classifier: it takes images {tuple(expected)}, but the purifier's denoiser takes "
            f"{tuple(shape)} (channels, height, width); give two for the same images"
            + ("" if shape[0] != expected[0] else ", or a DiffusionPurifier with resize=True")
        )
    classes = _known(classifier, "num_classes")
    for part in (purifier, getattr(purifier, "denoiser", None), *purifier.modules()):
        count = getattr(part, "num_classes", None)
        if classes and count and count != classes:
            raise ValueError(
                f"classifier: it has {classes} classes, but the purifier's {type(part).__name__} "
                f"has {count}; give models of the same classes (a classifier inside "
                "torch.nn.Sequential is not compared)"
            )


def _known(module: nn.Module, name: str) -> Any:
    """An attribute of a module or of its denoiser; None where neither has it."""
    denoiser = getattr(module, "denoiser", None)
    return getattr(module, name, None) or getattr(denoiser, name, None)
