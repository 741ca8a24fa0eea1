"""Error of class-loss differences by the way in which noise levels and noises are drawn.

`python -m benchmarks.draws` estimates L_k - L_y of the packaged digits model on noisy digits, y the
most likely class and k the second, with the same number of passes T in several ways. It prints the
root mean squared error over images and repetitions, in units of the standard deviation of
L_k - L_y over images, and how often the class is that of the reference, which has `reference`
levels. Classes always share their draws.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdc import Denoiser, class_errors
from rdc.commands.program import run_program
from rdc.data import load
from rdc.images import to_x

LOW, HIGH = 0.5, 3.0
Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""passes, pixels -> positions of the levels in (0, 1) on the log scale (T,), noises (T, pixels)"""


@dataclass(frozen=True)
class DrawsConfig:
    """The size of the measurement."""

    images: int = 30
    noise: float = 0.5
    """standard deviation of the noise in the images, on [0, 1]"""
    passes: tuple[int, ...] = (8, 32)
    repeats: int = 8
    reference: int = 512
    seed: int = 0


def independent(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(count, generator=generator), normal(count, pixels, generator)


def lattice(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shift = torch.rand(1, generator=generator)
    return (torch.arange(count) + shift) / count, normal(count, pixels, generator)


def midpoints(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (torch.arange(count) + 0.5) / count, normal(count, pixels, generator)


def two_draws(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    levels = (torch.arange(count // 2) + 0.5) / (count // 2)
    return levels.repeat(2), normal(count, pixels, generator)


def antithetic(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    levels, noise = two_draws(count, pixels, generator)
    return levels, torch.cat([noise[: count // 2], -noise[: count // 2]])


def sobol(count: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    seed = int(torch.randint(2**31, (1,), generator=generator))
    points = torch.quasirandom.SobolEngine(1 + pixels, scramble=True, seed=seed).draw(count)
    points = points.double().clamp(1e-6, 1 - 1e-6)
    return points[:, 0].float(), torch.special.ndtri(points[:, 1:]).float()


def normal(count: int, pixels: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, pixels, generator=generator)


WAYS: dict[str, Draw] = {
    "independent levels": independent,
    "levels on a shifted lattice": lattice,
    "midpoints (`levels=T`)": midpoints,
    "half the levels, `draws=2`": two_draws,
    "the same, `antithetic`": antithetic,
    "Sobol points, level and noise": sobol,
}


class Bench:
    """The packaged denoiser and noisy test images."""

    def __init__(self, config: DrawsConfig) -> None:
        self.denoiser = Denoiser.from_pretrained("digits").eval().requires_grad_(False)
        self.generator = torch.Generator().manual_seed(config.seed)
        images = load("digits", "test").images[: config.images]
        noise = torch.randn(images.shape, generator=self.generator)
        self.x = to_x(images + config.noise * noise)
        self.repeats = config.repeats
        losses = self.losses(midpoints, config.reference)
        first, second = losses.topk(2, largest=False).indices.unbind(1)
        self.first, self.second = first[:, None], second[:, None]
        self.truth = self.difference(losses)

    def losses(self, draw: Draw, count: int) -> Tensor:
        """Losses (B, K) from `count` levels and noises."""
        positions, noise = draw(count, self.x[0].numel(), self.generator)
        stretch = math.log(HIGH / LOW)
        sigmas = LOW * (stretch * positions).exp()
        weights = sigmas**-2 * stretch / count  # "elbo", sigma^-3, and d sigma = sigma d ln(sigma)
        draws = noise.view(1, -1, *self.x.shape[1:])
        return class_errors(self.denoiser, self.x, sigmas, draws) @ weights

    def difference(self, losses: Tensor) -> Tensor:
        """L_k - L_y (B,) of the two most likely classes."""
        return (losses.gather(1, self.second) - losses.gather(1, self.first))[:, 0]

    def error_and_agreement(self, draw: Draw, count: int) -> tuple[float, float]:
        found = [self.losses(draw, count) for _ in range(self.repeats)]
        errors = torch.stack([self.difference(each) - self.truth for each in found])
        agree = torch.stack([each.argmin(1) == self.first[:, 0] for each in found])
        error = errors.square().mean().sqrt() / self.truth.std()
        return error.item(), agree.double().mean().item()


def main(config: DrawsConfig) -> None:
    """Print a row for each way of drawing."""
    torch.set_num_threads(1)
    bench = Bench(config)
    head = "".join(f"{f'T = {count}: error':>16}{'agree %':>9}" for count in config.passes)
    print(f"{'':<32}{head}")
    for name, draw in WAYS.items():
        found = [bench.error_and_agreement(draw, count) for count in config.passes]
        cells = "".join(f"{error:>16.3f}{100 * agree:>9.1f}" for error, agree in found)
        print(f"{name:<32}{cells}", flush=True)


if __name__ == "__main__":
    sys.exit(run_program(main))
