"""Cost of the gradient of an attack's loss on a label-conditional diffusion classifier.

`python -m benchmarks.sparse` differentiates each loss in three ways, in turns: through all classes
with every activation kept, through all classes recomputed in chunks, and as `rdc.class_losses` does
it, which recomputes the classes that the loss depends on. CPU time; the ratios are of medians.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evaluation.attacks.losses import cross_entropy, dlr, margin, targeted_dlr
from rdc import Denoiser, DenoiserConfig, Levels, UNetConfig, class_losses
from rdc.commands.program import run_program
from rdc.likelihood import chunk_rows


@dataclass(frozen=True)
class SparseConfig:
    """A label-conditional network with random weights, and the classifier's integral."""

    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            image_size=32, conditioning="label", width=32, blocks_per_level=1
        )
    )
    images: int = 2
    levels: int = 4
    repeats: int = 5


def main(config: SparseConfig) -> None:
    """Print CPU milliseconds per image, the classes that ran again, and the two ratios."""
    torch.set_num_threads(1)
    bench = Bench(config)
    classes = config.network.num_classes
    labels = torch.arange(config.images) % classes
    losses = {
        "margin": partial(margin, labels=labels),
        "DLR": partial(dlr, labels=labels),
        "targeted DLR": partial(targeted_dlr, labels=labels, targets=(labels + 1) % classes),
        "cross-entropy": partial(cross_entropy, labels=labels),
    }
    print(f"K = {classes}, {config.levels} levels, {config.images} images; ms per image")
    print(f"{'':<14}{'classes':>8}{'kept':>8}{'again':>8}{'ours':>8}{'kept':>12}{'again':>8}")
    for name, loss in losses.items():
        kept, again, ours = (1000 * t / config.images for t in bench.seconds(loss))
        ratios = f"{kept / ours:>11.2f}x{again / ours:>7.2f}x"
        print(f"{name:<14}{bench.active(loss):>8.1f}{kept:>8.0f}{again:>8.0f}{ours:>8.0f}{ratios}")


class Bench:
    """The network, and images of uniform noise."""

    def __init__(self, config: SparseConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self.denoiser = Denoiser(DenoiserConfig(config.network)).eval().requires_grad_(False)
        for weights in self.denoiser.parameters():  # some of them start at 0
            weights.add_(0.02 * torch.randn(weights.shape, generator=generator))
        self.repeats = config.repeats
        self.levels = Levels.build(count=config.levels, low=0.5, high=3.0)
        shape = config.images, *self.denoiser.image_shape
        self.x = 2 * torch.rand(shape, generator=generator) - 1
        self.noise = torch.randn((1, config.levels, *shape[1:]), generator=generator)

    def seconds(self, loss: Callable[[Tensor], Tensor]) -> list[float]:
        """Medians for the three ways, whose gradients must agree."""
        ways = self.kept, self.again, self.ours
        times: list[list[float]] = [[] for _ in ways]
        for _ in range(self.repeats + 1):
            found = []
            for way, taken in zip(ways, times, strict=True):
                x = self.x.clone().requires_grad_()
                started = time.process_time()
                (gradient,) = torch.autograd.grad(loss(-way(x)).sum(), x)
                taken.append(time.process_time() - started)
                found.append(gradient / gradient.abs().max())
            for gradient in found:
                torch.testing.assert_close(gradient, found[0], rtol=0, atol=1e-4)
        return [statistics.median(taken[1:]) for taken in times]

    def active(self, loss: Callable[[Tensor], Tensor]) -> float:
        """Classes per image on whose losses the loss depends."""
        losses = self.ours(self.x).requires_grad_()
        (cotangent,) = torch.autograd.grad(loss(-losses).sum(), losses)
        return cotangent.count_nonzero().item() / len(self.x)

    def ours(self, x: Tensor) -> Tensor:
        return class_losses(self.denoiser, x, self.levels, self.noise)

    def kept(self, x: Tensor) -> Tensor:
        return self._sum(self._errors(*self._rows(x)))

    def again(self, x: Tensor) -> Tensor:
        """The same errors, recomputed in backward, with as many network rows in a chunk as ours."""
        chunk = max(1, chunk_rows(x) // self.denoiser.num_classes)
        parts = zip(*(tensor.split(chunk) for tensor in self._rows(x)), strict=True)
        return self._sum(
            torch.cat([checkpoint(self._errors, *part, use_reentrant=False) for part in parts])
        )

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, noised image and sigma of every pair of image and level."""
        sigma = self.levels.sigmas.to(x).repeat(len(x))
        clean = x.repeat_interleave(len(self.levels), dim=0)
        noise = self.noise.expand(len(x), *self.noise.shape[1:]).flatten(0, 1)
        return clean, clean + sigma[:, None, None, None] * noise, sigma

    def _errors(self, clean: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.denoiser.denoise_classes(noised, sigma)
        return (denoised - clean[:, None]).square().sum((2, 3, 4))

    def _sum(self, errors: Tensor) -> Tensor:
        weights = self.levels.weights.to(errors)
        return torch.einsum("btk,t->bk", errors.unflatten(0, (-1, len(weights))), weights)


if __name__ == "__main__":
    sys.exit(run_program(main))
