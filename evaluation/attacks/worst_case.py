"""Most harmful image of several attacks, judged on draws that no attack has seen."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation
from evaluation.attacks.rng import pick, spawn

SELECTION = 2**31
"""The path of `spawn` that no attack takes for itself."""


class Selection:
    """The most harmful images so far, at first the given ones: attacks never help a defense."""

    def __init__(
        self, victim: Expectation, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> None:
        self.victim = victim
        self.labels = labels
        self.seeds = seeds
        # One set of draws for all candidates, so that chance does not choose among them.
        self._unseen = spawn(seeds, SELECTION)
        self.images = images
        self.judged = victim.evaluate(images, labels, seeds=self._unseen)
        # A clean image is attacked all the same where its draws may be wrong by chance, or where
        # the model that is wrong about it is not the one to be fooled.
        final = victim.draws == 1 and victim.judges
        self._attacked = torch.full_like(self.judged.wrong, final, dtype=torch.bool)

    def standing(self) -> Tensor:
        """Images that at least one draw still gets right, or that no attack has tried: (M,)."""
        return ((self.judged.wrong < 1) | ~self._attacked).nonzero()[:, 0]

    def run(
        self, attack: Callable[[Tensor, list[int]], Tensor], *path: int, index: Tensor | None = None
    ) -> Tensor:
        """Attack the images `index` (M,), by default those standing; keep the most harmful ones.

        `attack` gets their numbers (M,) and their seeds for the use `path`, and returns images.
        The share of wrong draws (B,) of what it returned; NaN for images that were left out.
        """
        wrong = torch.full_like(self.judged.wrong, torch.nan)
        index = self.standing() if index is None else index
        if len(index):
            found = attack(index, spawn(pick(self.seeds, index), *path))
            wrong[index] = self._keep(index, found)
        return wrong

    def _keep(self, index: Tensor, found: Tensor) -> Tensor:
        self._attacked[index] = True
        judged = self.victim.evaluate(found, self.labels[index], seeds=pick(self._unseen, index))
        before = type(judged)(*(values[index] for values in self.judged))
        worse = judged.worse(before)
        self.images, wrong = self.images.clone(), judged.wrong
        self.images[index[worse]] = found[worse]
        for values, new in zip(self.judged, judged, strict=True):
            values[index[worse]] = new[worse]
        return wrong


def top_classes(
    victim: Expectation, images: Tensor, labels: Tensor, *, count: int, seeds: Sequence[int]
) -> list[Tensor]:
    """The `count` likeliest wrong classes (or all, where there are fewer), each (B,) int64.

    The likeliest one in place of a class of probability 0, which no attack can aim at.
    """
    logits = victim.logits(images, seeds=seeds).mean(1)
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    found = wrong.topk(min(count, logits.shape[1] - 1), dim=1)
    return list(found.indices.where(found.values.isfinite(), found.indices[:, :1]).unbind(1))
