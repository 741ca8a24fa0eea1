"""How a random defence is judged: one shot, the majority of its votes, or the worst of its answers.

The same defence is right on 95 % of clean images in one shot and on 36 % when any of 20 answers may
be the wrong one. A number without its protocol, and without the clean accuracy under the same
protocol, says nothing.
"""

import torch
from torch import Tensor, nn

from rdc.noise import copies

ATTACK, SELECTION, JUDGEMENT = range(3)
"""what draws are for; no draw serves two purposes"""


def numbers(images: Tensor, count: int, purpose: int) -> list[int]:
    """`count` draws of each image's own, by the images' ids (B,): B * count copy numbers.

    Never 0, which is the frozen draw that an attacker may know.
    """
    ids = images.tolist()
    return [(purpose << 60) + (i << 30) + draw + 1 for i in ids for draw in range(count)]


@torch.no_grad()
def predictions(
    model: nn.Module,
    images: Tensor,
    ids: Tensor,
    *,
    draws: int,
    purpose: int = JUDGEMENT,
    rows: int = 256,
) -> Tensor:
    """The class that the model gives each image (B, C, H, W) under `draws` draws: (B, draws).

    `ids` (B,) name the images; `rows` go through the model at once.
    """
    repeated = images.repeat_interleave(draws, dim=0)
    chosen = numbers(ids, draws, purpose)
    found = []
    for start in range(0, len(repeated), rows):
        with copies(chosen[start : start + rows]):
            found.append(model(repeated[start : start + rows]).argmax(1))
    return torch.cat(found).view(len(images), draws)


def one_shot(predicted: Tensor, labels: Tensor) -> Tensor:
    """Share of draws under which an image is classified correctly: (B, R) to (B,)."""
    return (predicted == labels[:, None]).double().mean(1)


def majority(predicted: Tensor, labels: Tensor) -> Tensor:
    """Whether most draws say the right class (B,) bool; of equals, the one that came first."""
    equal = predicted[:, :, None] == predicted[:, None, :]
    winner = equal.sum(2).argmax(1)
    return predicted.gather(1, winner[:, None])[:, 0] == labels


def worst(predicted: Tensor, labels: Tensor) -> Tensor:
    """Whether every draw says the right class (B,) bool: an attacker may resubmit."""
    return (predicted == labels[:, None]).all(1)
