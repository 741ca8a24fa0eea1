"""Losses that attacks raise: one value per image, larger is worse, from logits (B, K), labels (B,).

Targeted losses also take `targets` (B,), the wrong classes that the attack aims at.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from rdc.margin import margin

Loss = Callable[..., Tensor]
"""loss(logits, labels), or loss(logits, labels, targets) where the attack has targets."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label: (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the right one: (B,)."""
    return _of(logits, targets) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, margin / (z_1 - z_3), z sorted (Croce & Hein 2020, eq. 6).

    Invariant to shift and scale of the logits. With two classes, which have no z_3, the margin.
    """
    return margin(logits, labels) / _spread(logits, last=3)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_1 - (z_3 + z_4) / 2), z sorted (Croce & Hein 2020, eq. 7).

    Below four classes it is the targeted margin. Three have no z_4, and over z_1 - z_3 the loss of
    the least likely class would be the constant -1.
    """
    change = targeted_margin(logits, labels, targets)
    return change if logits.shape[1] < 4 else change / _spread(logits, last=4)


UNTARGETED, TARGETED = (cross_entropy, margin, dlr), (targeted_margin, targeted_dlr)


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _spread(logits: Tensor, *, last: int) -> Tensor | float:
    """The largest logit minus the mean of the third to the `last`; 1 where there are too few."""
    if logits.shape[1] < 3:
        return 1.0
    ordered = logits.topk(min(last, logits.shape[1]), dim=1).values
    # Equal logits have no spread; the loss is 0 there whatever the divisor.
    spread = (ordered[:, 0] - ordered[:, 2:last].mean(1)).clamp_min(1e-12)
    return spread.masked_fill(spread.isinf(), 1.0)  # classes of probability 0 have no logit
