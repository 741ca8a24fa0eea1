"""Noise levels, their weights in the likelihood integral, and the draws.

The diffusion loss of an image x is the integral over sigma of w(sigma) E ||x - D(x + sigma n)||^2.
`Levels` approximates it by nodes; a spacing says where they lie, a weighting what w is. Both are
densities over sigma, so that every spacing can be combined with every weighting.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rdc import vp

Spacing = Literal["uniform", "log", "lognormal", "vp"]
Weighting = Literal["elbo", "edm", "published", "epsilon"]
NoiseMode = Literal["frozen", "fresh"]

P_MEAN, P_STD = -1.2, 1.2  # EDM's training distribution of ln(sigma), Karras et al. 2022, table 1


def lognormal_density(sigma: Tensor, mean: float = P_MEAN, std: float = P_STD) -> Tensor:
    """Density of sigma when ln(sigma) ~ N(mean, std^2); integrates to 1."""
    z = (sigma.log() - mean) / std
    return (-z.square() / 2).exp() / (sigma * std * math.sqrt(2 * math.pi))


def weight(sigma: Tensor, weighting: Weighting, *, sigma_data: float = 0.5) -> Tensor:
    """w(sigma) of the diffusion loss, the squared error summed over pixels.

    "elbo": sigma^-3. The integral from s to infinity is KL(N(x, s^2) || p_s), the exact price in
        nats of explaining x at noise s (I-MMSE; Kingma et al. 2021, eq. 11-15, in sigma).
    "edm": EDM's training loss (Karras et al. 2022, table 1), log-normal density times
        (sigma^2 + sigma_data^2) / (sigma sigma_data)^2; the density integrates to 1.
    "published": the same with the density of the authors' released code, which multiplies by
        P_std^2 where the log-normal divides, and integrates to 1 / P_std^2 = 0.694.
    "epsilon": the unweighted error in the noise, averaged over VP time: density of vp.sigma(t),
        t uniform, over sigma^2; the density integrates to 1.
    """
    if weighting == "elbo":
        return sigma**-3
    if weighting == "epsilon":
        return vp.sigma_density(sigma) / sigma.square()
    scale = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    if weighting == "edm":
        return scale * lognormal_density(sigma)
    if weighting == "published":
        slip = (-(sigma.log() - P_MEAN).square() / 2 * P_STD**2).exp()
        return scale * slip / (sigma * P_STD * math.sqrt(2 * math.pi))
    raise ValueError(f"weighting={weighting!r} must be one of {get_args(Weighting)}")


def nodes(spacing: Spacing, count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """`count` noise levels in [low, high] and the width of sigma that each stands for, float64.

    "uniform": the authors' grid, the left ends of equal intervals (a first-order rule).
    "log", "lognormal", "vp": midpoints of equal quantiles of ln(sigma) uniform, of EDM's
        log-normal, and of the VP process with uniform time (second-order rules).
    """
    if not 0 < low < high or count < 1:
        raise ValueError(
            f"noise levels need 0 < low < high and count >= 1, got low={low}, high={high}, "
            f"count={count}"
        )
    if spacing == "uniform":
        edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
        return edges[:-1], edges.diff()
    bounds = torch.tensor([low, high], dtype=torch.float64)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if spacing == "log":
        a, b = bounds.log()
        sigma = (a + (b - a) * u).exp()
        return sigma, sigma * (b - a) / count
    if spacing == "lognormal":
        a, b = torch.special.ndtr((bounds.log() - P_MEAN) / P_STD)
        sigma = (P_MEAN + P_STD * torch.special.ndtri(a + (b - a) * u)).exp()
        return sigma, (b - a) / (count * lognormal_density(sigma))
    if spacing == "vp":
        a, b = vp.time(bounds)
        sigma = vp.sigma(a + (b - a) * u)
        return sigma, (b - a) / (count * vp.sigma_density(sigma))
    raise ValueError(f"spacing={spacing!r} must be one of {get_args(Spacing)}")


@dataclass(frozen=True)
class Levels:
    """Noise levels (T,) and the weight of each one's squared error (T,), float64.

    A level drawn several times stands there several times, with its weight divided among them.
    `weighting` and the stretch [`low`, `high`] of sigma say what they integrate.
    """

    sigmas: Tensor
    weights: Tensor
    weighting: Weighting
    low: float
    high: float

    @classmethod
    def build(
        cls,
        *,
        count: int,
        low: float,
        high: float,
        spacing: Spacing = "log",
        weighting: Weighting = "elbo",
        draws: int = 1,
        sigma_data: float = 0.5,
    ) -> "Levels":
        """`count` levels in [low, high], each with `draws` independent noises."""
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        sigmas, widths = nodes(spacing, count, low, high)
        weights = weight(sigmas, weighting, sigma_data=sigma_data) * widths / draws
        return cls(sigmas.repeat(draws), weights.repeat(draws), weighting, low, high)

    def __len__(self) -> int:
        return len(self.sigmas)


_COPIES: ContextVar[tuple[int, ...]] = ContextVar("copies", default=(0,))


@contextmanager
def copies(numbers: Sequence[int]) -> Iterator[None]:
    """Inside, row i of a batch draws as copy numbers[i % len(numbers)] of its image.

    Frozen noise is a function of the seed and the copy; outside, everything is copy 0. Fresh noise
    differs from row to row anyway. The batch must hold all copies of each image, side by side.
    Within another `copies` these are copies of its copies: an average over draws of a defense that
    itself votes over copies has different voters in each draw.
    """
    # The seed is made of words of 32 bits: a copy of copy 0 is that copy itself.
    token = _COPIES.set(tuple((row << 32) + number for row in _COPIES.get() for number in numbers))
    try:
        yield
    finally:
        _COPIES.reset(token)


class Noise:
    """Unit Gaussian draws that one stochastic module owns; the global generators are not touched.

    "frozen": the draws are a function of the seed alone, the same for every image: the module is a
        deterministic function of its image, alone or in any batch. Copies of an image differ; see
        `copies`.
    "fresh": each image of each call gets its own draws. Every image takes one number from this
        object's generator and draws from it alone, so that a batch or its parts in the same order
        give the same result.

    `stream` separates the modules of one defense that share a seed.
    """

    def __init__(self, mode: NoiseMode, *, seed: int = 0, stream: int = 0) -> None:
        if mode not in get_args(NoiseMode):
            raise ValueError(f"noise={mode!r} must be one of {get_args(NoiseMode)}")
        self.mode = mode
        self.seed = seed
        self.stream = stream
        self._images = torch.Generator().manual_seed(self._root(0))
        self._frozen: tuple[tuple, tuple[Tensor, Tensor]] | None = None

    def normal(self, like: Tensor, count: int) -> Tensor:
        """N(0, 1) draws (B or 1, count, C, H, W) for images `like` (B, C, H, W)."""
        return self.normal_and_uniform(like, count)[0]

    def normal_and_uniform(self, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The same and U(0, 1) draws (B or 1, count)."""
        seeds = self.seeds(len(like))
        if self.mode == "fresh":
            return _draws(seeds, count, like)
        key = (*seeds, count, like.shape[1:], like.dtype, like.device)
        frozen = self._frozen  # a thread with another key may replace it at any moment
        if frozen is None or frozen[0] != key:
            frozen = self._frozen = key, _draws(seeds, count, like)
        normal, uniform = frozen[1]
        if len(seeds) in (1, len(like)):
            return normal, uniform
        images = len(like) // len(seeds)
        return normal.repeat(images, 1, 1, 1, 1), uniform.repeat(images, 1)

    def seeds(self, rows: int) -> list[int]:
        """What the rows of a batch draw from: a seed for each, or fewer that they take in turn."""
        if self.mode == "fresh":
            return torch.randint(2**62, (rows,), generator=self._images).tolist()
        numbers = _COPIES.get()
        if rows % len(numbers):
            raise ValueError(
                f"images: {rows} rows are not {len(numbers)} copies of each image; repeat every "
                "image as often as there are copies"
            )
        return [self._root(number) for number in numbers]

    def _root(self, copy: int) -> int:
        # Copy 0 is what a module draws that knows of no copies.
        entropy = [self.seed, self.stream, copy] if copy else [self.seed, self.stream]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _draws(seeds: list[int], count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """N(0, 1) and U(0, 1) draws, one row per seed."""
    # Drawn in float64 on the CPU: every device and precision sees the same. Outside inference
    # mode, whose tensors a later backward pass could not use.
    with torch.inference_mode(False):
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(count, generator=generator, dtype=torch.float64)
            shape = (count, *like.shape[1:])
            rows.append((torch.randn(shape, generator=generator, dtype=torch.float64), uniform))
        normal, uniform = (torch.stack(part) for part in zip(*rows, strict=True))
        return normal.to(like.device, like.dtype), uniform.to(like.device, like.dtype)
