"""Classifier guidance with a label that the defense finds by itself."""

from typing import Literal, get_args

from torch import Tensor, nn

from purification.guidance.base import Moment, Potential, frozen
from rdc.config import require
from rdc.gradients import State
from rdc.images import to_pixels
from rdc.networks.evaluating import evaluating

Label = Literal["max", "input"]


class ClassifierGuidance(Potential):
    """log h = log p(y | x_t) (Dhariwal and Nichol 2021, section 4.1), p of a network on [0, 1].

    `classifier`: images (B, C, H, W) to logits (B, K). It sees the noisy state as (x_t + 1) / 2,
        and is frozen here: evaluation mode, constant weights.
    `label`: "max" takes the most probable class of each step, log max_y p(y | x_t): COUP (arXiv
        2408.05900), with weight 1. "input" takes the one of the given image throughout. The true
        label is nowhere accepted: a defense does not know it.
    """

    def __init__(self, classifier: nn.Module, *, label: Label = "max") -> None:
        super().__init__()
        self.classifier = frozen(classifier, "classifier")
        self.label: Label = label
        require(self, label=(label in get_args(Label), f"one of {get_args(Label)}"))

    def start(self, x_in: Tensor) -> State:
        return (self._logits(x_in).argmax(1),) if self.label == "input" else ()

    def log_h(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        log_p = self._logits(x).log_softmax(1)
        if self.label == "max":
            return log_p.amax(1)
        (y,) = context
        return log_p.gather(1, y[:, None])[:, 0]

    def _logits(self, x: Tensor) -> Tensor:
        with evaluating(self.classifier):
            return self.classifier(to_pixels(x))
