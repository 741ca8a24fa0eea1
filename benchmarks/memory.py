"""Memory that the gradient of a purifier keeps, counted tensor by tensor.

`python -m benchmarks.memory` counts the most bytes that autograd held at one time for its backward
pass, on a small network with random weights, for the exact gradient, for plain back-propagation
through all steps, and for torchsde's adjoint method.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from purification import DiffusionPurifier, PurifierConfig, TorchsdePurifier
from rdc import Denoiser, DenoiserConfig, UNetConfig
from rdc.commands.program import run_program


@dataclass(frozen=True)
class MemoryConfig:
    """Steps to compare and the network."""

    steps: tuple[int, ...] = (10, 100, 1000)
    most_plain: int = 100
    """plain back-propagation is left out where there are more steps: it would not fit"""
    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            image_size=32, width=16, blocks_per_level=1, attention_resolutions=(8,)
        )
    )


def main(config: MemoryConfig) -> None:
    """Print the peaks in units of one state, the image in float32."""
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(config.network)).eval().requires_grad_(False)
    image = torch.rand(1, *denoiser.image_shape)
    state = image.numel() * image.element_size()
    print(f"one state is {state} bytes; peaks in states, for one image")
    print(f"{'steps':>6}{'exact':>12}{'plain':>12}{'adjoint':>12}")
    for steps in config.steps:
        exact = DiffusionPurifier(denoiser, PurifierConfig("sde", steps=steps))
        adjoint = TorchsdePurifier(denoiser, dt=0.1 / steps)
        functions: list[Callable[[Tensor], Tensor] | None] = [exact, None, adjoint]
        if steps <= config.most_plain:
            functions[1] = lambda x, exact=exact: exact.trajectory(x)[-1]
        peaks = [None if f is None else peak_bytes(f, image) / state for f in functions]
        print(f"{steps:>6}" + "".join(f"{'-' if p is None else f'{p:.0f}':>12}" for p in peaks))


class _Kept:
    """Holds one tensor for a graph and counts it as long as the graph holds this."""

    def __init__(self, tensor: Tensor, ledger: "_Ledger") -> None:
        # Detached: a node that saved its own output would keep itself alive.
        self.tensor, self.ledger = tensor.detach(), ledger
        self.storage = tensor.untyped_storage()
        ledger.add(self.storage.data_ptr(), self.storage.nbytes())

    def __del__(self) -> None:
        self.ledger.remove(self.storage.data_ptr(), self.storage.nbytes())


class _Ledger:
    """Bytes of the storages in use; one that several hold counts once."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.held = self.peak = 0

    def add(self, pointer: int, size: int) -> None:
        self.holders[pointer] = self.holders.get(pointer, 0) + 1
        self.held += size if self.holders[pointer] == 1 else 0
        self.peak = max(self.peak, self.held)

    def remove(self, pointer: int, size: int) -> None:
        self.holders[pointer] -= 1
        self.held -= size if self.holders[pointer] == 0 else 0


def peak_bytes(function: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """The most bytes that autograd saves at a time for function(images) and its derivative."""
    ledger = _Ledger()
    x = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Kept(tensor, ledger), lambda kept: kept.tensor
    ):
        torch.autograd.grad(function(x).sum(), x)
    return ledger.peak


if __name__ == "__main__":
    sys.exit(run_program(main))
