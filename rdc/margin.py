"""The margin of a classifier's answers, the loss of attacks and the measure of certainty."""

import torch
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini & Wagner 2017): positive where misclassified.

    Unlike the cross-entropy it does not saturate when the logits are badly scaled.
    """
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.amax(1) - logits.gather(1, labels[:, None])[:, 0]
