"""Images and randomness of a training step, functions of the seed and the step alone.

Any number of processes therefore sees the same global batches, and a run can continue anywhere.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rdc.data import Dataset


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of one step: noise levels, noise, augmentation."""
    return torch.Generator(device).manual_seed(_seed(seed, 1, step))


def part_generator(seed: int, step: int, part: int, device: torch.device) -> torch.Generator:
    """The randomness of one process's part of a step."""
    return torch.Generator(device).manual_seed(_seed(seed, 3, step, part))


def seed_layers(seed: int, step: int, process: int) -> None:
    """Seed the random layers of a network (dropout), which draw from PyTorch's own generator.

    Checkpoints then need no random states.
    """
    torch.manual_seed(_seed(seed, 4, step, process))


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Rows of the data set in step `step`: every epoch is a fresh permutation (batch_size,)."""
    start = step * batch_size
    epochs = range(start // count, (start + batch_size - 1) // count + 1)
    rows = torch.cat([_permutation(seed, epoch, count) for epoch in epochs])
    return rows[start % count :][:batch_size]


class Batches:
    """The images of each step as floats on the device.

    All bytes lie on the device when they fit; otherwise they stay where they are (a memory map),
    and a thread gathers the next step's while this one computes.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, device: torch.device) -> None:
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self.resident = fits(data.pixels, device)
        self.pixels = data.pixels.to(device) if self.resident else data.pixels
        self.labels = data.labels.to(device)
        self.ahead: tuple[int, Future[Tensor]] | None = None
        self.thread = ThreadPoolExecutor(max_workers=1)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 in [0, 1] and labels (B,) of step `step`."""
        rows = self._rows(step)
        pixels = self.pixels[rows.to(self.device)] if self.resident else self._fetch(step)
        return pixels.float() / self.data.peak, self.labels[rows.to(self.device)]

    def _rows(self, step: int) -> Tensor:
        return batch_rows(self.seed, step, self.batch_size, len(self.data))

    def _fetch(self, step: int) -> Tensor:
        known = self.ahead is not None and self.ahead[0] == step
        pixels = self.ahead[1].result() if known and self.ahead else self._gather(step)
        self.ahead = (step + 1, self.thread.submit(self._gather, step + 1))
        return pixels.to(self.device, non_blocking=True)

    def _gather(self, step: int) -> Tensor:
        pixels = self.pixels[self._rows(step)]
        return pixels.pin_memory() if self.device.type == "cuda" else pixels


def fits(pixels: Tensor, device: torch.device) -> bool:
    """True where a data set may lie on the device: on a CPU, or in a quarter of a GPU's memory."""
    return device.type != "cuda" or pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, 2, epoch)))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
