"""Attacks on images of 8 bits, as PNG files store them: every pixel is a multiple of 1/255."""

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation
from rdc.norms import size, wide

LEVELS = 255


class OnGrid(Expectation):
    """A model that gets every point rounded to 8 bits; its gradient is that at the rounded point.

    The result of an attack on it needs `inside`.
    """

    def shown(self, points: Tensor) -> Tensor:
        return super().shown(points + (rounded(points) - points).detach())


def rounded(images: Tensor) -> Tensor:
    """The nearest images of 8 bits, in [0, 1]."""
    return (LEVELS * images).round() / LEVELS


def inside(points: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """Images of 8 bits near `points` (B, C, H, W) that are within `eps` of `images`.

    The nearest ones within the L-infinity budget; in L2 the nearest ones, and where these are too
    far, pixels are rounded toward `images`. Other threats have no ball: the nearest ones.

    Raises:
        ValueError: in L2 for `images` that have other values, so that rounding can leave the ball.
    """
    near = rounded(points)
    if norm not in ("linf", "l2"):
        return near
    if norm == "linf":
        tolerance = 1e-4  # of a level: rounding of eps such as 8/255
        low = (LEVELS * (images - eps) - tolerance).ceil()
        high = (LEVELS * (images + eps) + tolerance).floor()
        kept = (LEVELS * near).round().clamp(low.clamp_min(0), high.clamp_max(LEVELS)) / LEVELS
        return torch.where(low > high, images, kept)  # a budget below the distance of levels
    if (rounded(images) - images).abs().max() > 1e-6:
        raise ValueError(
            "images: not of 8 bits, so that rounding could leave an L2 budget; give multiples of "
            "1/255, or attack in linf"
        )
    toward = rounded(images + (LEVELS * (points - images)).trunc() / LEVELS)
    far = size(near - images, "l2") > eps
    return torch.where(wide(far), toward, near)
