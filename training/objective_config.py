"""Settings of the objectives of denoisers and classifiers."""

from dataclasses import dataclass
from math import exp, log
from typing import Literal

from rdc.choices import HIGHEST_SIGMA, LOWEST_SIGMA, Norm
from rdc.config import require, require_read

Distance = Literal["kl", "l2"]


@dataclass(frozen=True)
class NoiseConfig:
    """ln(sigma) ~ N(`mean`, `std`^2); EDM's default for natural images is -1.2 and 1.2."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        reach = 3 * self.std
        low, high = log(LOWEST_SIGMA), log(HIGHEST_SIGMA)
        fits = low <= self.mean - reach and self.mean + reach <= high
        require(
            self,
            std=(self.std > 0, "positive"),
            mean=(fits, f"3 std or more from {low:.4g} and {high:.4g}, the limits of ln(sigma)"),
        )

    @property
    def range(self) -> tuple[float, float]:
        """The noise levels that training sees, up to three standard deviations."""
        return exp(self.mean - 3 * self.std), exp(self.mean + 3 * self.std)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Noise levels and targets of a denoiser's training.

    `image_share`: the part of each batch that learns to predict its own image; the rest learns the
        class where the network has a classifier, and otherwise a teacher's K + 1 estimates. Without
        either it is the whole batch.
    `class_noise`: noise levels of the part that learns the class.
    `off_data`: largest change of a pixel, on [0, 1], by which the teacher's part leaves the data
        before noise is added, as attacks do: toward another image or in a random direction.
    `teacher_classes`: number of classes per image that the teacher estimates, its own among them; 0
        means all. A label-conditional or classifying teacher costs one pass per class.
    `label_dropout`: share of unconditional rows in label-conditional training.
    `uncertainty`: learn the expected loss of each noise level and divide by it.
    """

    noise: NoiseConfig = NoiseConfig()
    class_noise: NoiseConfig = NoiseConfig(mean=-0.7, std=0.6)
    image_share: float = 0.5
    off_data: float = 0.0
    teacher_classes: int = 0
    label_dropout: float = 0.1
    uncertainty: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            image_share=(0 <= self.image_share <= 1, "in [0, 1]"),
            off_data=(0 <= self.off_data <= 1, "in [0, 1]"),
            teacher_classes=(self.teacher_classes >= 0, "0 (all) or more"),
            label_dropout=(0 <= self.label_dropout <= 1, "in [0, 1]"),
        )


ATTACKING, TRADES = ("pgd", "trades"), ("trades",)
READ_BY = {
    "norm": ATTACKING, "eps": ATTACKING, "attack_steps": ATTACKING, "relative_step": ATTACKING,
    "weight": TRADES, "distance": TRADES,
}  # fmt: skip
"""Settings of `ClassifierObjectiveConfig` and the kinds that read them."""


@dataclass(frozen=True)
class ClassifierObjectiveConfig:
    """Standard training, or adversarial training in a ball around each image.

    `kind`: "standard" is the cross-entropy; "pgd" is that of the worst image found (Madry et al.
        2018, eq. 2.1); "trades" adds to it `weight` times the largest `distance` found between the
        outputs for the image and for one near it (Zhang et al. 2019, algorithm 1).
    `eps`: radius of the ball in `norm`, on the [0, 1] scale. The attack takes `attack_steps` steps
        of `relative_step` times `eps`.
    `weight`: 1 / lambda in the paper, beta in its code.
    `distance`: "kl" is KL(p(x) || p(x')) of the class probabilities, "l2" the squared difference of
        the logits, summed over the classes.
    `noise`: largest standard deviation, on the [-1, 1] scale, of Gaussian noise on what the network
        sees; each image's own is uniform in [0, `noise`].
    `label_smoothing`: share of the label that is spread over all classes. The attack ignores it.
    """

    kind: Literal["standard", "pgd", "trades"] = "standard"
    norm: Norm = "linf"
    eps: float = 8 / 255
    attack_steps: int = 10
    relative_step: float = 0.25
    weight: float = 6.0
    distance: Distance = "kl"
    noise: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        largest = 1 if self.norm == "linf" else float("inf")
        require(
            self,
            eps=(0 <= self.eps <= largest, f"in [0, {largest}], on the [0, 1] scale of images"),
            attack_steps=(self.attack_steps >= 1, "at least 1"),
            relative_step=(self.relative_step > 0, "positive"),
            weight=(self.weight >= 0, "0 or positive"),
            noise=(self.noise >= 0, "0 or positive"),
            label_smoothing=(0 <= self.label_smoothing < 1, "in [0, 1)"),
        )
        require_read(self, "kind", READ_BY)
