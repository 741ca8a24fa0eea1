"""StAdv (Xiao et al., ICLR 2018): pixels move instead of changing their color."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.norms import wide
from evaluation.attacks.rng import spawn
from evaluation.attacks.validation import checked


def stadv(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.05,
    steps: int = 100,
    step_size: float = 0.01,
    smoothness: float = 0.0,
    loss: Loss = margin,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] whose pixels are displaced so that `loss` rises, by Adam.

    `eps` bounds both coordinates of every displacement, where half the image's side is 1: 0.05 is
    2.5 % of the side. `step_size` is in the same unit. The paper has no bound, but a penalty of
    weight 0.05 on the flow's total variation (eq. 4; see `variation`): with a bound, any
    `smoothness` above 0 only makes the attack gentler.

    Returns each image's most harmful flow on the way. With several draws (see `Expectation`), every
    step sees new ones, and the best flow so far is judged by the same.
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"eps={eps} must be in [0, 1]: displacements, of half the image's side")
    seeds = checked(images, labels, eps=eps, seeds=seeds, steps=steps)
    if eps == 0:
        return images
    victim = Expectation.of(model)
    flow = images.new_zeros(len(images), 2, *images.shape[2:])
    still = torch.zeros_like(flow, dtype=torch.float64)
    moments = still, still
    largest = still.new_zeros(len(images), 1, 1, 1)
    worst, draws = images, spawn(seeds, 0)
    harm = victim.evaluate(images, labels, seeds=draws)
    for step in range(1, steps + 1):
        if victim.draws > 1:
            draws = spawn(seeds, step)
            harm = victim.evaluate(worst, labels, seeds=draws)
        point, (judged, slope) = _look(victim, images, labels, flow, loss, draws, smoothness)
        worse = judged.worse(harm)
        worst = torch.where(wide(worse), point, worst)
        harm = judged.where(worse, harm)
        # A saturated model's slopes are minute: in float64, and epsilon in their unit.
        largest = largest.maximum(slope.double().abs().amax((1, 2, 3), keepdim=True))
        moments, move = _adam(moments, slope.double(), step, 1e-8 * largest)
        flow = (flow + step_size * move.to(flow)).clamp(-eps, eps)
    judged = victim.evaluate(warp(images, flow), labels, seeds=draws)
    return torch.where(wide(judged.worse(harm)), warp(images, flow), worst)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (B, C, H, W) read at their pixels' places plus `flow` (B, 2, H, W), bilinearly.

    flow[:, 0] goes to the right and flow[:, 1] down, in half sides. Beyond the border lies its
    color.
    """
    height, width = images.shape[2:]
    down, across = ((2 * torch.arange(n).to(flow) + 1) / n - 1 for n in (height, width))
    places = torch.stack(torch.meshgrid(across, down, indexing="xy"), 2) + flow.movedim(1, 3)
    moved = F.grid_sample(
        images, places, mode="bilinear", padding_mode="border", align_corners=False
    )
    return moved.clamp(0, 1)


def variation(flow: Tensor) -> Tensor:
    """Mean distance in pixels between the displacements of neighbors (eq. 4, there a sum): (B,)."""
    sides = torch.tensor([flow.shape[3], flow.shape[2]]).to(flow)[:, None, None] / 2
    pixels = flow * sides
    steps = (pixels.diff(dim=2), pixels.diff(dim=3))
    tiny = torch.finfo(flow.dtype).eps ** 2  # keeps the root differentiable where nothing moves
    lengths = [(step.square().sum(1) + tiny).sqrt().flatten(1) for step in steps]
    return torch.cat(lengths, 1).mean(1)


def _look(
    victim: Expectation,
    images: Tensor,
    labels: Tensor,
    flow: Tensor,
    loss: Loss,
    draws: Sequence[int],
    smoothness: float,
):
    """The warped images, what the model makes of them, and the ascent direction of the flow."""
    with torch.enable_grad():
        flow = flow.detach().requires_grad_()
        moved = warp(images, flow)
        judged, gradient = victim.gradient(moved.detach(), labels, seeds=draws, loss=loss)
        goal = (moved * gradient).sum() - smoothness * variation(flow).sum()
        (slope,) = torch.autograd.grad(goal, flow)
    return moved.detach(), (judged, slope)


def _adam(
    moments: tuple[Tensor, Tensor], slope: Tensor, step: int, epsilon: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Adam's moments and its move at step size 1 (Kingma & Ba 2015, algorithm 1)."""
    first = 0.9 * moments[0] + 0.1 * slope
    second = 0.999 * moments[1] + 0.001 * slope.square()
    size = (second / (1 - 0.999**step)).sqrt() + epsilon
    move = first / (1 - 0.9**step) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return (first, second), move
