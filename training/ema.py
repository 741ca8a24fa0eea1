"""Exponential moving averages of a network's weights, several half-lives at once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Averages of the floating-point state of `module`, one track for each half-life, in images.

    As in EDM (Karras et al. 2022, appendix F.2) a half-life is at most `ramp` of the images seen,
    so that early averages forget the random start.
    """

    def __init__(
        self, module: nn.Module, half_lives: tuple[float, ...], *, ramp: float = 0.05
    ) -> None:
        self.module = module
        self.half_lives = half_lives
        self.ramp = ramp
        # The optimizer and the running statistics change these tensors in place.
        state = {k: v.detach() for k, v in module.state_dict().items() if v.is_floating_point()}
        self.names, self.current = list(state), list(state.values())
        self.tracks = [[tensor.clone() for tensor in self.current] for _ in half_lives]

    @torch.no_grad()
    def update(self, *, images_seen: int, batch_size: int) -> None:
        """Average in the weights after one optimizer step on `batch_size` images."""
        for half_life, track in zip(self.half_lives, self.tracks, strict=True):
            half_life = max(min(half_life, self.ramp * images_seen), 1e-8)
            torch._foreach_lerp_(  # type: ignore[reportPrivateImportUsage]
                track, self.current, 1 - 0.5 ** (batch_size / half_life)
            )

    @torch.no_grad()
    def copy_to(self, module: nn.Module, track: int) -> None:
        """Copy the averages of one track into `module`, a copy of the averaged one.

        Tensors that are no floats (counters) come from the averaged module.
        """
        targets = module.state_dict()
        averages = dict(zip(self.names, self.tracks[track], strict=True))
        for name, tensor in self.module.state_dict().items():
            targets[name].copy_(averages.get(name, tensor))

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{number}/{name}": tensor
            for number, track in enumerate(self.tracks)
            for name, tensor in zip(self.names, track, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        mine = self.state_dict()
        if mine.keys() != state.keys():
            raise ValueError(f"averages of other tensors: {sorted(mine.keys() ^ state.keys())}")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"the average {name} has another shape")
            tensor.copy_(state[name])
