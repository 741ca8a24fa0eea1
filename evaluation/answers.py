"""Answers of a model: classes under its frozen draw, or under draws that no attack has seen."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.rng import spawn

JUDGMENT = 2**31 + 1
"""The path of `spawn` for these draws: no attack and no selection has seen them."""


class Answers(NamedTuple):
    """Classes of B images under R draws and their softmax probabilities: (B, R), on the CPU."""

    classes: Tensor
    confidences: Tensor


def answers(
    model: Model, images: Tensor, seeds: Sequence[int], *, draws: int, max_rows: int = 256
) -> Answers:
    """The answers of `model` for images (B, C, H, W) in [0, 1] under `draws` draws each.

    With `draws` = 1 the frozen draw, which an attacker may know; `seeds` (B) then do nothing.
    """
    victim = Expectation(model, draws=draws, max_rows=max_rows)
    logits = victim.logits(images, seeds=spawn(seeds, JUDGMENT))
    classes = logits.argmax(2)  # not of the probabilities, in which logits may be equal by rounding
    confidences = logits.softmax(2).gather(2, classes[:, :, None])[:, :, 0]
    return Answers(classes.cpu(), confidences.cpu())
