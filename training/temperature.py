"""Temperature scaling of logits (Guo et al., ICML 2017)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.margin import margin


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T, from e^-12 to e^12, that fits logits (N, K) / T to held-out labels (N,).

    It minimizes the cross-entropy. Where no image is wrong, that has no minimum, because it falls
    to 0 with T (separation: Albert & Anderson, Biometrika 1984). One error is then made up: the
    least certain image counts once more, with its second class as the label. If all images are
    equally certain, their confidence becomes N / (N + 1); Platt's target (1999) is
    (N + 1) / (N + 2), which would also move T where there are errors.
    """
    # It takes half a second to import, and programs must refuse a wrong flag at once.
    from scipy.optimize import minimize_scalar

    logits, labels = with_an_error(logits.double(), labels)

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    # The loss is convex in 1 / T, so unimodal in ln T.
    best: Any = minimize_scalar(loss, bounds=(-12, 12), method="bounded")
    return math.exp(best.x)


def with_an_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and labels, where none is wrong with the least certain image as an error too."""
    certainty = -margin(logits, labels)
    # Equal logits prefer no class at any T: they can be neither an error nor certain.
    decided = certainty > 0
    if (certainty < 0).any() or not decided.any():
        return logits, labels
    least = logits[certainty.where(decided, torch.inf).argmin()]
    second = least.topk(2).indices[1]
    return torch.cat([logits, least[None]]), torch.cat([labels, second[None]])
