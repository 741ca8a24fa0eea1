"""The geometry of attacks: budgets and decision boundaries inside the box [0, 1].

All functions work on each image (C, H, W) of a batch by itself. Projections are exact, Euclidean
for the ball and in `norm` for hyperplanes: the box is part of the problem, and not clipped to
afterwards, which would give away budget.
"""

import torch
from torch import Tensor

from rdc.choices import Norm

UNBOUNDED = 1e300


def wide(values: Tensor) -> Tensor:
    """One value per image (B,) as (B, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)


def size(change: Tensor, norm: Norm) -> Tensor:
    """The norm of each image of a batch: (B,)."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def project(points: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """The closest points (L2) to `points` within `eps` of `images` (in the box) and in the box."""
    if norm == "linf":
        return points.clamp((images - eps).clamp_min(0), (images + eps).clamp_max(1))
    inside = points.clamp(0, 1)
    far = size(inside - images, "l2") > eps
    if not far.any():
        return inside
    # Outside the ball: the change times a scale, as far as the box allows, that spends eps exactly.
    change = points.double() - images
    room = torch.where(change > 0, 1 - images, images)
    spent = change.new_full((len(images),), eps**2)
    scale = _level(change.square(), room.square(), spent).sqrt()
    on_sphere = (images + scale * change).clamp(0, 1)
    return torch.where(wide(far), on_sphere.to(images.dtype), inside)


def to_hyperplane(points: Tensor, normal_to: Tensor, amount: Tensor, norm: Norm) -> Tensor:
    """The point z of the box closest to each point with <normal_to, z - point> = amount (B,).

    `normal_to` is (B, C, H, W). Where the hyperplane misses the box: the point of the box nearest
    to it in that direction.
    """
    direction = normal_to.sign() * wide(amount.sign())
    room = torch.where(direction > 0, 1 - points, points)
    slope = normal_to.abs().double()
    # In L-infinity all pixels move alike until they meet the box; in L2 each as its slope.
    speed = torch.ones_like(slope) if norm == "linf" else slope
    moved = (_level(slope * speed, slope * room, amount.abs()) * speed).minimum(room)
    return (points + moved * direction).clamp(0, 1).to(points.dtype)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of size 1 in `norm` in which a linear function rises fastest; 0 where flat."""
    if norm == "linf":
        return gradient.sign()
    # In two steps: the square of a gradient that nearly vanished would underflow.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.where(largest > 0, torch.ones_like(largest))
    length = scaled.flatten(1).norm(dim=1)
    return scaled / wide(length.where(length > 0, torch.ones_like(length)))


def _level(rates: Tensor, most: Tensor, total: Tensor) -> Tensor:
    """The smallest t (B, 1, 1, 1) with sum_i min(rates_i t, most_i) = total (B,).

    rates and most (B, C, H, W) are 0 or more, t is float64. Where even the sum of `most` is less,
    t is `UNBOUNDED`. Newton's method, which on this concave function of t rises to the answer and
    is exact once it knows the entries that are at their most: a few passes, and no sort.
    """
    rates, most = rates.double().flatten(1), most.double().flatten(1)
    total = total.double()[:, None]
    full = torch.zeros_like(rates, dtype=torch.bool)
    rising, left = rates, total
    while True:
        rate = rising.sum(1, keepdim=True)
        t = torch.where(rate > 0, left / rate, UNBOUNDED)
        before, full = full, full | (rates * t > most)
        if torch.equal(full, before):
            return wide(t.clamp_min(0))
        # What the entries at their most leave, shared by the others, which rise alike.
        rising, left = rates * ~full, total - (most * full).sum(1, keepdim=True)
