"""Cost of K class estimates: one multi-head pass against K conditional rows of the same trunk.

`python -m benchmarks.heads` alternates the two and prints the ratio of the medians.
"""

import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks.timing import medians
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
        x.requires_grad_(gradient)
        calls = {name: partial(estimate, network, x) for name, network in networks.items()}
        times = medians(calls, config.repeats, clock=time.perf_counter)
        base = times["K conditional rows"]
        print(
            "forward and image gradient" if gradient else "forward",
            f"(K = {config.network.num_classes})",
        )
        for name, median in times.items():
            print(
                f"  {name:<30}{1000 * median / config.images:9.2f} ms/image {base / median:7.2f}x"
            )


def denoiser(config: UNetConfig) -> Denoiser:
    return Denoiser(DenoiserConfig(config)).eval().requires_grad_(False)


def estimate(network: Denoiser, x: torch.Tensor) -> None:
    denoised = network.denoise_classes(x, torch.tensor(1.0))
    if x.requires_grad:
        torch.autograd.grad(denoised.sum(), x)


if __name__ == "__main__":
    sys.exit(run_program(main))
