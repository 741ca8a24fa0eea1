"""Cost of K class estimates: one multi-head pass against K conditional rows of the same trunk.

`python -m benchmarks.heads` alternates the two and prints the ratio of the medians.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field, replace

import torch

from rdc import Denoiser, DenoiserConfig, UNetConfig
from rdc.commands.program import run_program


@dataclass(frozen=True)
class BenchmarkConfig:
    """Networks and rows; the defaults are small enough for a laptop."""

    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            image_size=32, width=32, blocks_per_level=1, attention_resolutions=(16,)
        )
    )
    images: int = 16
    """noised images per call"""
    repeats: int = 7


def main(config: BenchmarkConfig) -> None:
    """Time both networks in turns, without gradients and with the gradient of the images."""
    networks = {
        name: denoiser(replace(config.network, conditioning=conditioning, head_blocks=blocks))
        for name, conditioning, blocks in (
            ("K conditional rows", "label", 0),
            ("multi-head", "multihead", 0),
            ("multi-head, 1 block per head", "multihead", 1),
        )
    }
    shape = next(iter(networks.values())).image_shape
    x = torch.randn(config.images, *shape)
    for gradient in (False, True):
        times = {name: [] for name in networks}
        for _ in range(config.repeats + 1):
            for name, network in networks.items():
                times[name].append(seconds(network, x, gradient=gradient))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        base = medians["K conditional rows"]
        print(
            "forward and image gradient" if gradient else "forward",
            f"(K = {config.network.num_classes})",
        )
        for name, median in medians.items():
            print(
                f"  {name:<30}{1000 * median / config.images:9.2f} ms/image {base / median:7.2f}x"
            )


def denoiser(config: UNetConfig) -> Denoiser:
    return Denoiser(DenoiserConfig(config)).eval().requires_grad_(False)


def seconds(network: Denoiser, x: torch.Tensor, *, gradient: bool) -> float:
    x = x.clone().requires_grad_(gradient)
    started = time.perf_counter()
    denoised = network.denoise_classes(x, torch.tensor(1.0))
    if gradient:
        torch.autograd.grad(denoised.sum(), x)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_program(main))
