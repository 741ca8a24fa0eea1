"""AGDM: stay close to the given image as an adversarially trained network sees it."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from purification.guidance.base import Moment, Potential, frozen
from rdc.config import require
from rdc.gradients import State
from rdc.images import to_pixels
from rdc.networks.evaluating import evaluating

Distance = Literal["l2", "kl"]
Representation = Literal["logits", "features"]


class AGDM(Potential):
    """log h = -distance_weight D(c(x'), c(x_t)) + class_weight log p(y | x_t), x' the given image.

    Lin et al., Neural Networks 2025 (arXiv 2403.16067): p is the softmax of c's logits. No code was
    released; the defaults are our reading. y is the class that c gives x', found once, never the
    true label. Gradients flow through c(x') as well; y is piecewise constant.

    `network`: c, images (B, C, H, W) in [0, 1] to logits (B, K). It sees the noisy state as
        (x_t + 1) / 2, and is frozen here: evaluation mode, constant weights.
    `distance`: "l2" is the squared distance, summed over the representation; "kl" is
        KL(p(. | x') || p(. | x_t)).
    `representation`: what "l2" compares: the "logits", or `network.features(images)` (B, F).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        distance: Distance = "l2",
        representation: Representation = "logits",
        distance_weight: float = 1.0,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = frozen(network, "network")
        self.distance: Distance = distance
        self.representation: Representation = representation
        self.distance_weight, self.class_weight = distance_weight, class_weight
        known = representation in get_args(Representation)
        has_features = representation != "features" or hasattr(network, "features")
        comparable = distance != "kl" or representation == "logits"
        require(
            self,
            distance=(distance in get_args(Distance), f"one of {get_args(Distance)}"),
            representation=(
                known and has_features and comparable,
                "'logits', or 'features' with a network that has such a method and distance='l2'",
            ),
            distance_weight=(distance_weight >= 0, "0 or more"),
            class_weight=(class_weight >= 0, "0 or more"),
        )

    def start(self, x_in: Tensor) -> State:
        representation, logits = self._see(x_in)
        return representation, logits.argmax(1)

    def log_h(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        given, y = context
        representation, logits = self._see(x)
        log_p = logits.log_softmax(1)
        distance = self._distance(given, representation)
        log_likelihood = log_p.gather(1, y[:, None])[:, 0]
        return self.class_weight * log_likelihood - self.distance_weight * distance

    def _see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The representation that is compared, (B, F) or (B, K), and the logits (B, K)."""
        network: Any = self.network
        images = to_pixels(x)
        with evaluating(network):
            logits = network(images)
            seen = network.features(images) if self.representation == "features" else logits
        return seen, logits

    def _distance(self, given: Tensor, seen: Tensor) -> Tensor:
        if self.distance == "l2":
            return (given - seen).square().flatten(1).sum(1)
        log_p, log_q = given.log_softmax(1), seen.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1)
