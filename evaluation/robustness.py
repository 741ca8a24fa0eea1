"""Robust accuracy: per image, the worst over the attacks through every surrogate."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evaluation.attacks.pgd import pgd
from rdc.defense import batch_coupled


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 40,
    surrogates: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attacked images (B, C, H, W), and per attack whether `model` is still right (B,) bool.

    The image returned is one that `model` gets wrong wherever an attack found one.
    """
    if surrogates is None:
        surrogates = {"exact": model}
    for name, module in {"model": model, **surrogates}.items():
        if batch_coupled(module):
            raise ValueError(
                f"{name}: its answer for an image depends on the batch, but here images are "
                "attacked and judged one by one; use a defense without batch_coupled guidance"
            )
    worst, right = images, {"none": correct(model, images, labels)}
    broken = ~right["none"]
    for name, surrogate in surrogates.items():
        start = torch.Generator().manual_seed(seed)
        attacked = pgd(surrogate, images, labels, eps=eps, steps=steps, generator=start)
        right[name] = correct(model, attacked, labels)
        newly = ~right[name] & ~broken
        worst = torch.where((newly | ~broken)[:, None, None, None], attacked, worst)
        broken = broken | newly
    return worst, right


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether `model` gives each image its label: (B,) bool."""
    return model(images).argmax(1) == labels
