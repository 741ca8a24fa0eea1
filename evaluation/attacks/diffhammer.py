"""DiffHammer (NeurIPS 2024): attack on all draws of a purifier by the gradient of one of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.attacks.apgd import Climb
from evaluation.attacks.eot import Expectation, Judgment
from evaluation.attacks.losses import Loss, cross_entropy, dlr, margin
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import Selection
from rdc import Defense
from rdc.choices import Norm
from rdc.noise import using_draws

LOSSES = (margin, cross_entropy, dlr)
"""Losses of the runs, one after the other."""
ENOUGH = 0.5
"""Share of wrong draws above which an image gets no further run."""
SHARPNESS = 5.0
"""Slope of the sigmoid that weights the draws."""


@prepared
def diffhammer(
    model: Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 50,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images within `eps` of `images` (B, C, H, W) in [0, 1] that are wrong under most draws.

    `model` is an Expectation of several draws of a `Defense` of one copy. Each step is one of APGD
    along a grafted gradient (`Grafted.gradient`), averaged with those of earlier steps at weight
    (number of gradients)^-1/2 for the new one. A run for each of `LOSSES`; after the first, only
    images that at most half of the draws misclassify are attacked again.

    Follows the released attack, with three differences: draws are kept from one checkpoint of APGD
    to the next and then changed, as in `apgd`; the gradient goes through the defense's own steps,
    not through twice as many; and draws that the attack has not seen choose among the runs.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, steps=steps)
    victim = Expectation.of(model)
    if not isinstance(victim.model, Defense) or victim.model.copies > 1 or victim.draws < 2:
        raise ValueError(
            "model: must be an Expectation of at least 2 draws of a Defense with copies=1, such as "
            "Expectation(defense, draws=10); for other models use `apgd`"
        )
    if eps == 0:
        return images
    selection = Selection(victim, images, labels, seeds)
    grafted = Grafted(victim, eps=eps)
    index = torch.arange(len(images), device=images.device)
    for number, loss in enumerate(LOSSES, start=1):

        def run(index: Tensor, seeds: list[int], loss: Loss = loss) -> Tensor:
            climb = Averaged(
                grafted, images[index], labels[index], seeds, eps=eps, norm=norm, loss=loss
            )
            return climb.run(steps)

        selection.run(run, number, index=index)
        index = (selection.judged.wrong <= ENOUGH).nonzero()[:, 0]
    return selection.images


class Grafted(Expectation):
    """A defense whose gradient is the derivative of one draw, applied to a mean over all draws."""

    def __init__(self, victim: Expectation, *, eps: float) -> None:
        super().__init__(victim.model, draws=victim.draws, max_rows=victim.max_rows)
        assert isinstance(victim.model, Defense)
        self.purifier, self.classifier = victim.model.purifier, victim.model.classifier
        self.victim, self.eps = victim, eps

    def shown(self, points: Tensor) -> Tensor:
        return self.victim.shown(points)

    def gradient(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        loss: Loss = margin,
        targets: Tensor | None = None,
    ) -> tuple[Judgment, Tensor]:
        """Means over the draws, and J(j)^T r (B, C, H, W), J(j) the purifier's derivative.

        g_i is the classifier's gradient at the image purified under draw i, m_i its margin, u(g)
        the direction g / |g|. Draw j maximizes sum_i ELU(m_i + eps <u(g_j), g_i>): a step along its
        gradient would break most draws. r is the mean of all g_i with weights
        sigmoid(5 (m_i + <u(g_j), g_i>)): of the draws that a step may break. Costs a call of the
        defense and a gradient of the classifier for each draw, and one gradient of the purifier.
        """
        values, margins, slopes = self._of_draws(images, labels, seeds, loss)
        chosen, goal = graft(margins, slopes.flatten(2), self.eps)
        numbers = [(seed << 32) + j + 1 for seed, j in zip(seeds, chosen.tolist(), strict=True)]
        goal = goal.view_as(slopes[0])
        parts = [slice(i, i + self.max_rows) for i in range(0, len(images), self.max_rows)]
        gradient = torch.cat(
            [self._through_purifier(images[p], goal[p], numbers[p]) for p in parts]
        )
        if not gradient.isfinite().all():
            raise FloatingPointError("model: the gradient of its purifier is NaN or infinite")
        wrong = (margins > 0).to(values)
        return Judgment(values.mean(0), wrong.mean(0), margins.mean(0)), gradient

    def _of_draws(
        self, images: Tensor, labels: Tensor, seeds: Sequence[int], loss: Loss
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and margin (draws, B) and the classifier's gradient (draws, B, C, H, W)."""
        found: list[list[list[Tensor]]] = []
        for part, draws in self._blocks(len(images)):
            count = len(draws)
            rows = self.shown(images[part]).repeat(count, 1, 1, 1)
            with self._drawing(seeds[part], draws):
                with torch.no_grad():
                    purified = self.purifier(rows)
                with torch.enable_grad():
                    purified.requires_grad_()
                    logits = self.classifier(purified)
                    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                    values = loss(logits, labels[part].repeat(count))
                    (slopes,) = torch.autograd.grad(values.sum(), purified)
            margins = margin(logits.detach(), labels[part].repeat(count))
            if draws.start == 0:
                found.append([])
            answers = values.detach(), margins, slopes.to(images)
            found[-1].append([answer.unflatten(0, (count, -1)) for answer in answers])
        of_images = [[torch.cat(parts) for parts in zip(*blocks, strict=True)] for blocks in found]
        values, margins, slopes = (torch.cat(parts, 1) for parts in zip(*of_images, strict=True))
        return values, margins, slopes

    def _through_purifier(self, images: Tensor, goal: Tensor, numbers: list[int]) -> Tensor:
        with torch.enable_grad(), using_draws(numbers):
            point = images.detach().requires_grad_()
            purified = self.purifier(self.shown(point))
            return torch.autograd.grad(purified, point, goal.to(purified))[0]


class Averaged(Climb):
    """A run of APGD along the average of all gradients so far."""

    average: Tensor | None = None
    count = 0

    def _gradient(self, points: Tensor) -> tuple[Judgment, Tensor]:
        judged, new = super()._gradient(points)
        self.count += 1
        share = self.count**-0.5
        if self.average is not None:
            new = share * new + (1 - share) * self.average
        self.average = new
        return judged, new


def graft(margins: Tensor, slopes: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The draw (B,) whose direction breaks most draws, and the mean slope (B, D) of those.

    `margins` (draws, B), `slopes` (draws, B, D).
    """
    unit = F.normalize(slopes, dim=2, eps=torch.finfo(slopes.dtype).tiny)
    gains = torch.einsum("jbd,ibd->bji", unit, slopes)  # of draw i along the slope of draw j
    margins = margins.to(gains).T[:, None]
    chosen = F.elu(margins + eps * gains).sum(2).argmax(1)
    gain = gains.gather(1, chosen[:, None, None].expand(-1, 1, gains.shape[2]))
    weights = (SHARPNESS * (margins + gain)[:, 0]).sigmoid()
    weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return chosen, torch.einsum("bi,ibd->bd", weights, slopes)
