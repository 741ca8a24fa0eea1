"""Temperature scaling of logits (Guo et al., ICML 2017)."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimizes the cross-entropy of logits (N, K) / T on held-out labels (N,)."""
    # It takes half a second to import, and programs must refuse a wrong flag at once.
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    # The loss is convex in 1 / T, so unimodal in ln T.
    best: Any = minimize_scalar(loss, bounds=(-12, 12), method="bounded")
    return math.exp(best.x)
