"""Passes and agreement of prediction by elimination, on digits in four orientations.

`python -m benchmarks.elimination` has 40 classes, ten digits times four quarter turns, and the
exact denoiser of the training images blurred by `bandwidth`, asked for one class at a time as a
label-conditional network would be.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from rdc import ClassifierConfig, DiffusionClassifier, OptimalDenoiser, predict_by_elimination
from rdc.choices import Split
from rdc.commands.program import run_program
from rdc.data import load
from rdc.images import to_x

SETTINGS = (
    ("32 levels", ClassifierConfig(levels=32)),
    ("16 levels, 4 draws", ClassifierConfig(levels=16, draws=4)),
    ("125 levels", ClassifierConfig(levels=125)),
)


@dataclass(frozen=True)
class EliminationConfig:
    """The test images and the denoiser."""

    images: int = 150
    bandwidth: float = 0.6
    """width of the exact denoiser, on [-1, 1]"""
    alpha: float = 0.01


class OneClassOptimalDenoiser(OptimalDenoiser):
    """The exact denoiser, asked for one class of each image."""

    @property
    def rows_per_image(self) -> int:  # type: ignore[override]
        return self.num_classes

    def denoise_class(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """E[x0 | x, sigma, y] for the labels y (B,)."""
        points, present = self.points[labels], self.present[labels]
        noise, total = (part[:, :, 0] for part in self._variance(x, sigma))
        distances = (x.flatten(1)[:, None] - points).square().sum(2)
        scores = (-distances / (2 * total)).masked_fill(~present, -torch.inf)
        mean = torch.einsum("bn,bnd->bd", scores.softmax(1), points)
        return (((total - noise) * x.flatten(1) + noise * mean) / total).unflatten(
            1, self.image_shape
        )


@torch.no_grad()
def main(config: EliminationConfig) -> None:
    """Print accuracy, agreement with the classifier, and passes, for each of its settings."""
    torch.set_num_threads(1)
    images, labels = rotated("train")
    denoiser, asked = (
        kind(to_x(images), labels, bandwidth=config.bandwidth)
        for kind in (OptimalDenoiser, OneClassOptimalDenoiser)
    )
    images, labels = (part[: config.images] for part in rotated("test"))
    print(f"{len(images)} images, K = {denoiser.num_classes}, alpha = {config.alpha}")
    print(f"{'':<20}{'accuracy %':>12}{'eliminating':>12}{'agree %':>9}{'passes':>8}{'of':>7}")
    for name, settings in SETTINGS:
        full = DiffusionClassifier(denoiser, settings)(images).argmax(1)
        found = predict_by_elimination(
            DiffusionClassifier(asked, settings), images, alpha=config.alpha
        )
        pairs = (full, labels), (found.labels, labels), (found.labels, full)
        shares = [100 * (one == other).double().mean().item() for one, other in pairs]
        passes = found.passes.double().mean().item()
        most = settings.levels * settings.draws * denoiser.num_classes
        cells = f"{shares[0]:>12.1f}{shares[1]:>12.1f}{shares[2]:>9.1f}{passes:>8.0f}{most:>7}"
        print(f"{name:<20}{cells}")


def rotated(split: Split) -> tuple[Tensor, Tensor]:
    """Digits turned by 0 to 3 quarters, image after image; class 10 turns + digit."""
    data = load("digits", split)
    turns = [torch.rot90(data.images, turn, (2, 3)) for turn in range(4)]
    labels = [data.labels + 10 * turn for turn in range(4)]
    return torch.stack(turns, 1).flatten(0, 1), torch.stack(labels, 1).flatten()


if __name__ == "__main__":
    sys.exit(run_program(main))
