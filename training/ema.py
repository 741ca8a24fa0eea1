"""Exponential moving averages of a network's weights, several half-lives at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EMA:
    """Averages of the state of `module`, one track for each half-life, in images.

    As in EDM (Karras et al. 2022, appendix F.2) a half-life is at most `ramp` of the images seen,
    so that early averages forget the random start. Made after accelerate has prepared the module:
    where its weights are sharded, so are the averages.
    """

    def __init__(
        self, module: nn.Module, half_lives: tuple[float, ...], *, ramp: float = 0.05
    ) -> None:
        self.module = module
        self.half_lives = half_lives
        self.ramp = ramp
        # The optimizer and the running statistics change these tensors in place.
        state = module.state_dict().values()
        self.current: list[Tensor] = [t.detach() for t in state if t.is_floating_point()]
        self.tracks = [[tensor.clone() for tensor in self.current] for _ in half_lives]

    @torch.no_grad()
    def update(self, *, images_seen: int, batch_size: int) -> None:
        """Take in the weights after one optimizer step on `batch_size` images."""
        for half_life, track in zip(self.half_lives, self.tracks, strict=True):
            half_life = max(min(half_life, self.ramp * images_seen), 1e-8)
            torch._foreach_lerp_(  # type: ignore[reportPrivateImportUsage]
                track, self.current, 1 - 0.5 ** (batch_size / half_life)
            )

    @torch.no_grad()
    def copy_to(self, module: nn.Module, track: int) -> None:
        """Give `module`, an unsharded copy of the averaged one, the weights of one track.

        What is not a float (counters) comes from the trained module.
        """
        averages = iter(self.tracks[track])
        targets = module.state_dict()
        for name, tensor in self.module.state_dict().items():
            source = next(averages) if tensor.is_floating_point() else tensor
            targets[name].copy_(source.full_tensor() if isinstance(source, DTensor) else source)

    def state_dict(self) -> dict[str, Any]:
        return {"tracks": self.tracks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for track, saved in zip(self.tracks, state["tracks"], strict=True):
            for tensor, value in zip(track, saved, strict=True):
                tensor.copy_(value)
