"""Gaussian draws of stochastic modules: frozen ones of a seed, or fresh ones per call."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

NoiseMode = Literal["frozen", "fresh"]
MOST_DRAWS = 100_000
"""Draws of one image; configurations that ask for more are refused, whatever asks for them."""

_COPIES: ContextVar[tuple[int, ...]] = ContextVar("copies", default=(0,))


@contextmanager
def using_draws(numbers: Sequence[int]) -> Iterator[None]:
    """Inside, row i of a batch draws as copy numbers[i % len(numbers)] of its image.

    Frozen noise is a function of the seed and the copy; outside, everything is copy 0. Fresh noise
    differs from row to row anyway. The batch must hold all copies of each image, side by side.
    Within another `using_draws` these are copies of its copies: an average over draws of a defense
    that itself votes over copies has different voters in each draw.
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
        `using_draws`.
    "fresh": each image of each call gets its own draws. Every image takes one number from this
        object's generator and draws from it alone, so that a batch or its parts in the same order
        give the same result. A worker process to which the module was copied draws differently:
        in a DataLoader by the worker's seed, elsewhere by the process id.

    `stream` separates the modules of one defense that share a seed.
    """

    def __init__(self, mode: NoiseMode, *, seed: int = 0, stream: int = 0) -> None:
        if mode not in get_args(NoiseMode):
            raise ValueError(f"noise={mode!r} must be one of {get_args(NoiseMode)}")
        self.mode = mode
        self.seed = seed
        self.stream = stream
        self._images = torch.Generator().manual_seed(self._root(0))
        self._process = os.getpid()
        self._frozen: tuple[tuple, tuple[Tensor, Tensor]] | None = None

    def normal(self, like: Tensor, count: int, *, antithetic: bool = False) -> Tensor:
        """N(0, 1) draws (B or 1, count, C, H, W) for images `like` (B, C, H, W).

        With `antithetic` the second half is the first with the opposite sign; `count` is even.
        """
        if not antithetic:
            return self.normal_and_uniform(like, count)[0]
        if count % 2:
            raise ValueError(f"count={count} must be even: antithetic draws come in pairs")
        half = self.normal_and_uniform(like, count // 2)[0]
        return torch.cat([half, -half], dim=1)

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
            if self._process != os.getpid():  # a copy, whose generator others have as well
                self._process = os.getpid()
                self._images.manual_seed(self._root(0, _process_seed()))
            numbers = torch.randint(2**62, (rows,), generator=self._images, device="cpu")
            return numbers.tolist()
        numbers = _COPIES.get()
        if rows % len(numbers):
            raise ValueError(
                f"images: {rows} rows are not {len(numbers)} copies of each image; repeat every "
                "image as often as there are copies"
            )
        return [self._root(number) for number in numbers]

    def _root(self, draw: int, *process: int) -> int:
        # Draw 0 is what a module draws outside of `using_draws`.
        entropy = [self.seed, self.stream, draw] if draw else [self.seed, self.stream]
        return int(np.random.SeedSequence([*entropy, *process]).generate_state(1)[0])


def _process_seed() -> int:
    """A number that no other worker has: a DataLoader's seed for it, or the process id."""
    worker = get_worker_info()
    return os.getpid() if worker is None else worker.seed


def _draws(seeds: list[int], count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """N(0, 1) and U(0, 1) draws, one row per seed."""
    # Drawn in float64 on the CPU: every device and precision sees the same. Outside inference
    # mode, whose tensors a later backward pass could not use, and whatever torch's default device.
    with torch.inference_mode(False), torch.device("cpu"):
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(count, generator=generator, dtype=torch.float64)
            shape = (count, *like.shape[1:])
            rows.append((torch.randn(shape, generator=generator, dtype=torch.float64), uniform))
        normal, uniform = (torch.stack(part) for part in zip(*rows, strict=True))
        return normal.to(like.device, like.dtype), uniform.to(like.device, like.dtype)
