"""Gaussian draws of stochastic modules: frozen ones of a seed, or fresh ones per call."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rdc.choices import NoiseMode, require_choice

_NUMBERS: ContextVar[tuple[int, ...]] = ContextVar("draws", default=(0,))


@contextmanager
def using_draws(numbers: Sequence[int]) -> Iterator[None]:
    """Context in which row i of a batch takes the frozen draw with the number numbers[i % count].

    Frozen noise is a function of the seed and of this number, which is 0 outside. Fresh noise
    differs from row to row anyway. The batch must hold every image once per number, side by side:

        images = images.repeat_interleave(4, dim=0)  # image 0 four times, then image 1, ...
        with using_draws(range(4)):
            logits = defense(images)  # rows 0 to 3: image 0 under the draws 0 to 3

    Within another `using_draws` the numbers are pairs of both: an average over draws of a defense
    that itself votes over draws has different voters in each draw.
    """
    # The seed is made of words of 32 bits: draw n within draw 0 is draw n itself.
    pairs = tuple((outer << 32) + number for outer in _NUMBERS.get() for number in numbers)
    token = _NUMBERS.set(pairs)
    try:
        yield
    finally:
        _NUMBERS.reset(token)


class Noise:
    """Unit Gaussian draws that one stochastic module owns; the global generators are not touched.

    "frozen": the draws are a function of the seed alone, the same for every image: the module is a
        deterministic function of its image, alone or in any batch. `using_draws` chooses others.
    "fresh": each image of each call gets its own draws. Every image takes one number from this
        object's generator and draws from it alone, so that a batch or its parts in the same order
        give the same result. A worker process to which the module was copied draws differently:
        in a DataLoader by the worker's seed, elsewhere by the process id.

    `stream` separates the modules of one defense that share a seed.
    """

    def __init__(self, mode: NoiseMode, *, seed: int = 0, stream: int = 0) -> None:
        require_choice("noise", mode, NoiseMode)
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
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
        """N(0, 1) draws as of `normal`, and U(0, 1) draws (B or 1, count)."""
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
        """Seeds of the rows of a batch: one for each, or fewer that the rows take in turn."""
        if self.mode == "fresh":
            if self._process != os.getpid():  # a worker with a copy of the generator
                self._process = os.getpid()
                self._images.manual_seed(self._root(0, _process_seed()))
            numbers = torch.randint(2**62, (rows,), generator=self._images, device="cpu")
            return numbers.tolist()
        numbers = _NUMBERS.get()
        if rows % len(numbers):
            raise ValueError(
                f"images: {rows} rows cannot share {len(numbers)} draws; repeat every image once "
                "per draw (images.repeat_interleave(draws, dim=0))"
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
        normal = torch.empty(len(seeds), count, *like.shape[1:], dtype=torch.float64)
        uniform = torch.empty(len(seeds), count, dtype=torch.float64)
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            uniform[row] = torch.rand(count, generator=generator, dtype=torch.float64)
            normal[row] = torch.randn(normal.shape[1:], generator=generator, dtype=torch.float64)
        return normal.to(like.device, like.dtype), uniform.to(like.device, like.dtype)
