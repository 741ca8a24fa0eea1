"""StAdv (Xiao et al., ICLR 2018): displacement of pixels in place of change of color."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.rng import generators, spawn, uniform
from evaluation.attacks.validation import check_budget, checked, prepared


@prepared
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

    The first step takes a random flow, each coordinate of which points to the side where the loss
    rises more, if it rises at all. At no flow, the gradient alone does not tell: it is that toward
    one neighbor of each pixel, and 0 where this neighbor is equal.

    `eps` bounds both coordinates of every displacement, where half the image's side is 1: 0.05 is
    2.5 % of the side. `step_size` is in the same unit. The paper has no bound, but a penalty of
    weight 0.05 on the flow's total variation (eq. 4; see `variation`): with a bound, any
    `smoothness` above 0 only makes the attack gentler.

    Returns each image's most harmful flow on the way. With several draws (see `Expectation`), every
    step sees new ones, and the best flow so far is judged by the same.
    """
    check_budget(eps, "stadv", images.shape[1:])
    if smoothness < 0:
        raise ValueError(f"smoothness={smoothness} must be 0 or more: the weight of a penalty")
    seeds = checked(images, labels, eps=eps, seeds=seeds, step_size=step_size, steps=steps)
    if eps == 0:
        return images
    displacement = Displacement(
        Expectation.of(model), images, labels, seeds, eps=eps, step_size=step_size,
        smoothness=smoothness, loss=loss,
    )  # fmt: skip
    return displacement.run(steps)


@dataclass(eq=False, kw_only=True)
class Displacement(Search):
    """Adam's ascent of the flow (B, 2, H, W), after a first step that chooses sides."""

    step_size: float
    smoothness: float
    loss: Loss

    def __post_init__(self) -> None:
        super().__post_init__()
        count, _, height, width = self.images.shape
        self.flow = self.images.new_zeros(count, 2, height, width)
        self.first = self.second = torch.zeros_like(self.flow, dtype=torch.float64)
        self.largest = self.first.new_zeros(count, 1, 1, 1)
        self.worst = self.images
        self.redraw(0)

    def step(self, number: int) -> None:
        if self.victim.draws > 1:
            self.redraw(number)
        point = warp(self.images, self.flow)
        judged, gradient = self.victim.gradient(
            point, self.labels, seeds=self.draws, loss=self.loss
        )
        self.keep(point, judged)
        if number == 1:
            self.flow = self._sides(gradient)
            return
        slope = self._slope(gradient, self.flow)
        # The slopes of a saturated model are minute: in float64, and epsilon in their unit.
        self.largest = self.largest.maximum(slope.abs().amax((1, 2, 3), keepdim=True))
        move = self._adam(slope, number - 1, 1e-8 * self.largest)
        self.flow = (self.flow + self.step_size * move.to(self.flow)).clamp(-self.eps, self.eps)

    def finish(self) -> None:
        """Judge the last flow."""
        point = warp(self.images, self.flow)
        self.keep(point, self.victim.evaluate(point, self.labels, seeds=self.draws))

    def _sides(self, gradient: Tensor) -> Tensor:
        """A random flow (B, 2, H, W) to the sides where the loss rises more, by the gradient
        (B, C, H, W) of the images.
        """
        sources = generators(spawn(self.seeds, 0, 0))
        flow = 2 * uniform(sources, self.flow.shape[1:], self.flow) - 1
        # Near no flow, on either side of the kink of bilinear interpolation.
        tiny = torch.full_like(flow, 1e-3 / max(flow.shape[2:]))
        up, down = self._slope(gradient, tiny), -self._slope(gradient, -tiny)
        side = torch.where(up > down, 1.0, -1.0)
        rises = torch.maximum(up, down) > 0
        return self.eps * torch.where(rises, side * flow.abs(), flow)

    def _slope(self, gradient: Tensor, flow: Tensor) -> Tensor:
        """The ascent direction of a flow in float64, from the gradient of the warped images."""
        with torch.enable_grad():
            flow = flow.detach().requires_grad_()
            goal = (warp(self.images, flow) * gradient).sum()
            (slope,) = torch.autograd.grad(goal - self.smoothness * variation(flow).sum(), flow)
        return slope.double()

    def _adam(self, slope: Tensor, step: int, epsilon: Tensor) -> Tensor:
        """Adam's move at step size 1 (Kingma & Ba 2015, algorithm 1)."""
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope.square()
        size = (self.second / (1 - 0.999**step)).sqrt() + epsilon
        return self.first / (1 - 0.9**step) / size.clamp_min(torch.finfo(size.dtype).tiny)


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
