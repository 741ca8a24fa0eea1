"""How a random defense is judged: on the frozen draw that its attacker knows, or on draws that no
attack has seen, by their mean, by the majority of their votes, or by the worst of them.

The same defense is right on 95 % of clean images under a fresh draw and on 36 % when any of 20
answers may be the wrong one. A number without its protocol, and without the clean accuracy under
the same protocol, says nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.rng import spawn

JUDGMENT = 2**31 + 1
"""The path of `spawn` that judges take: no attack and no selection has seen these draws."""


class Answers(NamedTuple):
    """What a model says about B images under R draws: each (B, R)."""

    classes: Tensor
    confidences: Tensor
    """softmax probabilities of the classes"""


def answers(
    model: Model, images: Tensor, seeds: Sequence[int], *, draws: int, max_rows: int = 256
) -> Answers:
    """What `model` says about each image (B, C, H, W) under `draws` draws of its own.

    With `draws` = 1 the frozen draw, which an attacker may know; `seeds` (B) then do nothing.
    """
    victim = Expectation(model, draws=draws, max_rows=max_rows)
    logits = victim.logits(images, seeds=spawn(seeds, JUDGMENT))
    confidences, classes = logits.softmax(2).max(2)
    return Answers(classes, confidences)


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
