"""Images per second of the training step against a plain PyTorch loop over the same network.

`python -m benchmarks.training` alternates the two in one process and prints the ratio of their
medians, and the share of our step that goes into having the images at hand.

The plain loop is what one would write first: a DataLoader over decoded images, random noise levels,
an average kept tensor by tensor, the loss read at every step.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import medians
from rdc import Denoiser, DenoiserConfig, UNetConfig
from rdc.commands.program import run_program
from rdc.data import Dataset
from rdc.runs.device import default_device
from training.config import TrainConfig
from training.denoising import DenoiserTask
from training.objective import image_losses, weighted
from training.run import Run
from training.setup import start_accelerator


@dataclass(frozen=True)
class BenchmarkConfig:
    """Network and batch; the defaults are small enough for a laptop."""

    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(width=32, blocks_per_level=1, attention_resolutions=())
    )
    batch_size: int = 32
    steps: int = 4
    """steps per measurement"""
    repeats: int = 7
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False


def main(config: BenchmarkConfig) -> None:
    """Time both loops in turns."""
    data = random_images(config.network, 20 * config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        ours, loading = our_loop(config, data, Path(folder))
        plain = plain_loop(config, data)
        ways = {"plain loop": plain, "training.train": ours, "its images": loading}
        calls = {name: partial(several, step, config.steps) for name, step in ways.items()}
        times = medians(calls, config.repeats, clock=time.perf_counter)
    seen = config.batch_size * config.steps
    for name in ("plain loop", "training.train"):
        ratio = times["plain loop"] / times[name]
        print(f"{name:<16}{seen / times[name]:10.1f} images/s {ratio:7.2f}x")
    share = times["its images"] / times["training.train"]
    print(f"having the images takes {100 * share:.2f} % of our step")


def random_images(network: UNetConfig, count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (count, network.channels, network.image_size, network.image_size)
    return Dataset(
        torch.randint(256, shape, generator=generator, dtype=torch.uint8),
        torch.arange(count) % network.num_classes,
        tuple(str(number) for number in range(network.num_classes)),
    )


Step = Callable[[], object]


def our_loop(config: BenchmarkConfig, data: Dataset, out: Path) -> tuple[Step, Step]:
    """A step of `training.train`, and the part of it that has the images ready."""
    settings = TrainConfig(
        out=out, network=config.network, batch_size=config.batch_size,
        precision=config.precision, compile=config.compile,
    )  # fmt: skip
    accelerator = start_accelerator(settings)
    task = DenoiserTask(settings, data, accelerator.device)
    run = Run(settings, task, accelerator, data, data)
    steps = iter(range(10**9))
    return lambda: run.step(next(steps)), lambda: task.batches(next(steps))


def plain_loop(config: BenchmarkConfig, data: Dataset) -> Step:
    """A step of the loop that one would write first."""
    device = default_device()
    denoiser = Denoiser(DenoiserConfig(config.network)).to(device)
    for weights in denoiser.parameters():  # as PyTorch lays them out by itself
        weights.data = weights.data.contiguous()
    average = copy.deepcopy(denoiser)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    batches = endless(data, config.batch_size)

    def step() -> float:
        images, labels = (tensor.to(device) for tensor in next(batches))
        x = 2 * images - 1
        sigma = (-1.2 + 1.2 * torch.randn(len(x), device=device)).exp()
        noised = x + sigma[:, None, None, None] * torch.randn_like(x)
        loss = weighted(image_losses(denoiser(noised, sigma), x, labels), sigma, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        for kept, weights in zip(average.parameters(), denoiser.parameters(), strict=True):
            kept.data.mul_(0.999).add_(weights.data, alpha=0.001)
        return loss.item()

    return step


def endless(data: Dataset, batch_size: int) -> Iterator[list[Tensor]]:
    loader = DataLoader(TensorDataset(data.images, data.labels), batch_size, shuffle=True)
    while True:
        yield from loader


def several(step: Step, count: int) -> None:
    for _ in range(count):
        step()


if __name__ == "__main__":
    sys.exit(run_program(main))
