"""GDMP: stay close to the given image (Wang et al., arXiv 2205.14969, 2022)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from purification.guidance.base import Moment, Potential
from rdc.config import require
from rdc.gradients import State

Distance = Literal["mse", "ssim"]
Reference = Literal["noised", "clean"]
Schedule = Literal["published", "constant"]

WINDOW, DEVIATION = 11, 1.5  # SSIM's Gaussian window, in pixels (Wang et al. 2004, section III.B)
RANGE = 2  # of pixels in [-1, 1]


class GDMP(Potential):
    """log h = -scale(t) D(x, reference) / reference_batch; weight: the paper's guide_scale.

    `distance`: "mse", the mean squared difference of an image's pixels, or "ssim", minus the mean
        structural similarity of its 11x11 windows (`ssim` says how the published one differs).
    `reference`: "noised" is the given image diffused to the state's time, with a draw of its own
        for every step (the paper, CIFAR-10); "clean" is the image as it is (released for ImageNet).
    `schedule`: "published" is scale(t) = sigma(t) / m with m = (2 eps) / 3, where sigma(t) =
        sqrt(1 - abar) / sqrt(abar) and `eps` is the expected attack on [0, 1]; "constant" is 1.
    `reference_batch`: the published strength is divided by the size of the batch. It was tuned at
        100 for CIFAR-10, and so 100 divides it for every batch; "actual" divides by the size of
        the batch at hand, as released, and makes an image's result depend on how many there are.

    Published weights: CIFAR-10 60000 ("mse") and 70000 ("ssim"), ImageNet 1000.
    """

    def __init__(
        self,
        *,
        distance: Distance = "mse",
        reference: Reference = "noised",
        schedule: Schedule = "published",
        eps: float = 8 / 255,
        reference_batch: int | Literal["actual"] = 100,
    ) -> None:
        super().__init__()
        self.distance: Distance = distance
        self.reference: Reference = reference
        self.schedule: Schedule = schedule
        self.eps = eps
        self.reference_batch: int | Literal["actual"] = reference_batch
        self.batch_coupled = reference_batch == "actual"
        self.draws = reference == "noised"
        counts = reference_batch == "actual" or (
            isinstance(reference_batch, int) and reference_batch >= 1
        )
        require(
            self,
            distance=(distance in get_args(Distance), f"one of {get_args(Distance)}"),
            reference=(reference in get_args(Reference), f"one of {get_args(Reference)}"),
            schedule=(schedule in get_args(Schedule), f"one of {get_args(Schedule)}"),
            eps=(eps > 0, "positive, on the [0, 1] scale"),
            reference_batch=(counts, "1 or more, or 'actual'"),
        )

    def start(self, x_in: Tensor) -> State:
        return (x_in,)

    def log_h(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        (target,), point = context, moment.point
        if moment.noise is not None:
            target = point.scale * target + point.deviation * moment.noise
        if self.distance == "ssim":
            closeness = ssim(x, target)
        else:
            closeness = -(x - target).square().flatten(1).mean(1)
        scale = 1.0 if self.schedule == "constant" else 3 * point.sigma / (2 * self.eps)
        batch = len(x) if self.reference_batch == "actual" else self.reference_batch
        return scale / batch * closeness


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of each image (B,), x and y (B, C, H, W) in [-1, 1].

    Wang et al. 2004, eq. 13, over all 11x11 windows inside the image; images must be as large.
    The published code pads with zeros, and takes the constants for pixels in a range of 1.
    """
    height, width = x.shape[2:]
    if min(height, width) < WINDOW:
        raise ValueError(
            f"distance='ssim': images of {height}x{width} pixels are smaller than its {WINDOW}x"
            f"{WINDOW} window; use distance='mse'"
        )
    moments = torch.cat([x, y, x.square(), y.square(), x * y], 1)
    ex, ey, exx, eyy, exy = F.conv2d(moments.flatten(0, 1)[:, None], _window(x)).unflatten(
        0, (len(x), 5, -1)
    ).squeeze(3).unbind(1)  # fmt: skip
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * ex * ey + c1) / (ex.square() + ey.square() + c1)
    covariance, variances = exy - ex * ey, exx - ex.square() + eyy - ey.square()
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(1)


def _window(like: Tensor) -> Tensor:
    """Gaussian weights (1, 1, 11, 11) that sum to 1."""
    offsets = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weights = torch.softmax(-offsets.square() / (2 * DEVIATION**2), 0)
    return (weights[:, None] * weights)[None, None]
