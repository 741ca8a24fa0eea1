"""Which images a training step sees: a function of the seed and the step, so that any process
count sees the same global batches and a run can continue anywhere."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of one step: noise levels, noise, augmentation."""
    return torch.Generator(device).manual_seed(_seed(seed, 1, step))


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Rows of the data set in step `step`: every epoch is a fresh permutation (batch_size,)."""
    start = step * batch_size
    epochs = range(start // count, (start + batch_size - 1) // count + 1)
    rows = torch.cat([_permutation(seed, epoch, count) for epoch in epochs])
    return rows[start % count :][:batch_size]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, 2, epoch)))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
