"""A temperature that makes the posterior honest (Guo et al., ICML 2017)."""

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the cross-entropy of logits (N, K) / T on held-out labels (N,)."""
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        scaled = logits / torch.tensor(log_temperature, dtype=torch.float64).exp()
        return F.cross_entropy(scaled, labels).item()

    # The loss is convex in 1 / T, so unimodal in ln T.
    return float(torch.tensor(minimize_scalar(loss, bounds=(-12, 12), method="bounded").x).exp())
