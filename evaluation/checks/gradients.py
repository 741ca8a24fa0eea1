"""Checks that gradients are the model's derivatives and predict how its loss changes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evaluation.attacks.losses import Loss, cross_entropy, dlr, margin
from evaluation.attacks.rng import generators, normal, random_start, spawn
from evaluation.attacks.square import square
from evaluation.checks.check import Finding, check
from evaluation.checks.consistency import difference, relative
from evaluation.checks.context import Subject
from rdc.norms import project, size, steepest

DISTANCES = {torch.float64: (1e-6, 1e-5, 1e-4), torch.float32: (1e-3, 1e-4, 1e-2)}
"""L2 lengths of finite differences, the best first: AGDM has kinks every 1e-4, and float32
rounding dominates below that."""
DIRECTIONS = 2
"""Random ones, beside that of the gradient."""
BESIDE = 1e-3
"""Linf distance by which points are moved off ties and edges."""
# Exact gradients in float64 are off by 3e-9, RDC's with central differences by 3e-5, in the median,
# and no point by more than 1e-3; straight-through purifiers by 0.5 to 0.7 in the median.
WRONG = 0.1
"""Relative error from which a gradient is wrong at a point."""
KINKED = 0.25
"""Share of points that may be wrong: kinks, and the coarse differences of float32."""

# APGD works at eps / 16 for most of 40 steps; there, models of this repository keep 94 % to 110 %
# of the promise in the median, and shattered ones less than 10 %.
STEP = 1 / 16
"""Length of a step along the gradient, as a share of the budget."""
STEPS = 4
FOLLOWS = 0.5
"""Median share of the promised rise that must come true."""

QUERIES = 300
"""Queries of the square attack on images without a gradient."""


@check("finite differences")
def finite_differences(subject: Subject) -> Finding:
    """The gradient of the margin against central differences, in float64 where the model can.

    Every other image as it is, the others at random points of the ball. At each point along the
    gradient and along random directions; the distance that agrees best counts, because any one of
    them may straddle a kink. None where they disagree and the copy computes in 16 bits: its
    rounding could be the reason.
    """
    precise = in_float64(subject)
    points = some_points(precise)
    _, gradient = precise.plain.gradient(points, precise.labels, seeds=precise.seeds)
    directions = torch.cat([steepest(gradient, "l2")[:, None], random_directions(precise)], 1)
    claimed = (gradient[:, None] * directions).flatten(2).sum(2)
    errors = torch.full_like(claimed[:, 0], torch.inf)
    flat = claimed.abs().amax(1) == 0
    for distance in DISTANCES[points.dtype]:
        index = (errors > WRONG).nonzero()[:, 0]
        if len(index):
            slopes = differences(precise.only(index), points[index], directions[index], distance)
            flat[index] &= slopes.abs().amax(1) == 0
            # Along the gradient and beside it: either alone could agree by chance.
            along = relative(slopes[:, :1], claimed[index, :1])
            beside = relative(slopes[:, 1:], claimed[index, 1:])
            errors[index] = errors[index].minimum(torch.maximum(along, beside))
    if flat.all():
        return None, "the loss is flat, and so is its gradient: see dead gradients"
    wrong = (errors > WRONG).double().mean().item()
    if wrong > KINKED and in_16_bits(precise):
        return None, "the model computes in 16 bits, whose rounding hides what differences show"
    detail = (
        f"in float{torch.finfo(points.dtype).bits} gradient and differences disagree by "
        f"{errors.median():.2g} of their size (median), and by more than {WRONG:g} at {wrong:.0%} "
        f"of {len(points)} points ({KINKED:.0%} allowed)"
    )
    remedy = (
        "the backward pass is not the derivative of the forward pass: take out detach() and "
        "straight-through estimates, or name the gradient as the surrogate that it is"
    )
    return wrong <= KINKED, detail, remedy


class Precisions(TorchFunctionMode):
    """The context that notes the types of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.seen.add(found.dtype)
        return found


def in_16_bits(subject: Subject) -> bool:
    """True where some part of the model computes in 16 bits."""
    with Precisions() as precisions:
        subject.few(1).logits()
    return not precisions.seen.isdisjoint((torch.half, torch.bfloat16))


def in_float64(subject: Subject) -> Subject:
    """A copy in float64 of nearly equal logits; the subject itself if there is none."""
    images = subject.images
    try:
        model = copy.deepcopy(subject.model).double()
        precise = replace(subject, model=model, images=images.double())
        if difference(precise.logits(), subject.logits().double()).median() < WRONG:
            return precise
    except (RuntimeError, TypeError, ValueError):
        pass  # a model that insists on its precision, or a device that has no float64
    return replace(subject, images=images.float())


def some_points(subject: Subject) -> Tensor:
    """Every other image as it is and the others anywhere in the ball, all a little beside.

    Equal pixels of an image are a tie of its maxima, and black ones lie on the edge of the box:
    there derivatives have two sides.
    """
    images = subject.images
    points = random_start(images, subject.eps, subject.ball, generators(spawn(subject.seeds, 3)))
    points[::2] = images[::2]
    return random_start(points, BESIDE, "linf", generators(spawn(subject.seeds, 5)))


def random_directions(subject: Subject) -> Tensor:
    """Random unit vectors (B, DIRECTIONS, C, H, W)."""
    shape = (DIRECTIONS, *subject.images.shape[1:])
    found = normal(generators(spawn(subject.seeds, 4)), shape, subject.images)
    return found / found.flatten(2).norm(dim=2)[:, :, None, None, None]


def differences(subject: Subject, points: Tensor, directions: Tensor, distance: float) -> Tensor:
    """Slopes of the margin at points (B, C, H, W) along directions (B, M, C, H, W): (B, M)."""
    labels = subject.labels.repeat_interleave(directions.shape[1])

    def margins(sign: float) -> Tensor:
        moved = (points[:, None] + sign * distance * directions).flatten(0, 1)
        judged = subject.plain.evaluate(moved, labels, seeds=[0] * len(moved))
        return judged.margin.view(directions.shape[:2])

    return (margins(1) - margins(-1)) / (2 * distance)


@check("the loss rises")
def loss_rises(subject: Subject) -> Finding:
    """The margin rises along its gradient about as much as the gradient promises.

    Plain steps from each image, `STEP` of the budget long, none taken back: what best-point
    tracking would hide. A gradient that is exact and yet belongs to ripples much finer than a step
    (shattered gradients, Athalye et al., ICML 2018) promises more than happens.
    """
    victim, seeds = subject.victim, subject.seeds
    point, ratios = subject.images, []
    judged, gradient = subject.slope
    if victim.draws > 1:
        judged, gradient = victim.gradient(point, subject.labels, seeds=seeds)
    for _ in range(STEPS):
        step = STEP * subject.eps * steepest(gradient, subject.ball)
        ahead = project(point + step, subject.images, subject.eps, subject.ball)
        promised = (gradient * (ahead - point)).flatten(1).sum(1)
        now, gradient = victim.gradient(ahead, subject.labels, seeds=seeds)
        ratios.append(((now.loss - judged.loss) / promised)[promised > 0])
        point, judged = ahead, now
    kept = torch.cat(ratios)
    if not len(kept):
        return None, "no gradient promises a rise: see dead gradients"
    median, rises = kept.median().item(), (kept > 0).double().mean().item()
    detail = (
        f"steps of eps/{1 / STEP:g} raise the margin by {median:.2f} times what the gradient "
        f"promises (median of {len(kept)}; at least {FOLLOWS:g} wanted), and {rises:.0%} raise it "
        "at all"
    )
    remedy = (
        "gradients do not say where the loss rises: attack without the rippled part, through a "
        "smooth stand-in for it, and with more queries of square"
    )
    return median >= FOLLOWS, detail, remedy


@check("dead gradients")
def dead_gradients(subject: Subject) -> Finding:
    """No loss has a gradient, though answers change within the budget.

    Dead is a gradient that is zero or smaller than any normal number, of the margin and of the
    cross-entropy and the DLR loss. Square then looks for another answer.
    """
    dead = (slope_size(subject, [margin]) < tiny(subject)).nonzero()[:, 0]
    if len(dead):
        others = slope_size(subject.only(dead), [cross_entropy, dlr])
        dead = dead[others < tiny(subject)]
    count, total = len(dead), len(subject.images)
    if not count:
        return True, f"all {total} images have a gradient"
    lost = subject.only(dead)
    # As the label, what is said of the image: another answer is what counts.
    said = replace(lost, labels=lost.logits().argmax(1))
    searched = square(
        said.plain, said.images, said.labels, eps=said.eps, norm=said.ball, queries=QUERIES,
        seeds=said.seeds,
    )  # fmt: skip
    changed = int((said.logits(searched).argmax(1) != said.labels).sum())
    detail = (
        f"{count} of {total} images have no gradient in any loss, and {QUERIES} queries of square "
        f"change the answer of {changed} of these"
    )
    remedy = (
        "attacks by gradient only seem to fail: differentiate through a smooth stand-in for what "
        "rounds or saturates, or in higher precision"
    )
    return not changed and count < total, detail, remedy


def slope_size(subject: Subject, losses: Sequence[Loss]) -> Tensor:
    """The largest entry of each image's gradients (B,); 0 where autograd finds none."""
    found = torch.zeros_like(subject.images[:, 0, 0, 0])
    for loss in losses:
        try:
            _, gradient = subject.plain.gradient(
                subject.images, subject.labels, seeds=subject.seeds, loss=loss
            )
        except ValueError:
            continue
        found = found.maximum(size(gradient, "linf"))
    return found


def tiny(subject: Subject) -> float:
    """The smallest normal number of the images' precision."""
    return torch.finfo(subject.images.dtype).tiny
