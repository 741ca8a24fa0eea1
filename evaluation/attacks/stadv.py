"""StAdv (Xiao et al., ICLR 2018): displacement of pixels in place of change of color."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.attacks.eot import Expectation, Judgment, Model
from evaluation.attacks.iterate import Search
from evaluation.attacks.losses import Loss, margin
from evaluation.attacks.validation import checked, prepared


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
    displacement = Displacement(
        Expectation.of(model), images, labels, seeds, eps=eps, step_size=step_size,
        smoothness=smoothness, loss=loss,
    )  # fmt: skip
    return displacement.run(steps)


@dataclass(eq=False, kw_only=True)
class Displacement(Search):
    """Adam's ascent of the flow (B, 2, H, W), from none."""

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
        point, judged, slope = self._look()
        self.keep(point, judged)
        # The slopes of a saturated model are minute: in float64, and epsilon in their unit.
        self.largest = self.largest.maximum(slope.abs().amax((1, 2, 3), keepdim=True))
        move = self._adam(slope, number, 1e-8 * self.largest)
        self.flow = (self.flow + self.step_size * move.to(self.flow)).clamp(-self.eps, self.eps)

    def finish(self) -> None:
        """Judge the last flow."""
        point = warp(self.images, self.flow)
        self.keep(point, self.victim.evaluate(point, self.labels, seeds=self.draws))

    def _look(self) -> tuple[Tensor, Judgment, Tensor]:
        """Warped images, the model's judgment, and the ascent direction of the flow in float64."""
        with torch.enable_grad():
            flow = self.flow.detach().requires_grad_()
            moved = warp(self.images, flow)
            judged, gradient = self.victim.gradient(
                moved.detach(), self.labels, seeds=self.draws, loss=self.loss
            )
            goal = (moved * gradient).sum() - self.smoothness * variation(flow).sum()
            (slope,) = torch.autograd.grad(goal, flow)
        return moved.detach(), judged, slope.double()

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
