"""Images of one work unit, and the records of a model's answers for them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluation.answers import Answers
from evaluation.attacks.rng import pick
from evaluation.results.records import Record
from evaluation.work_queue import Unit


@dataclass(frozen=True)
class Batch:
    """Images of a unit: numbers, (B, C, H, W) in [0, 1], labels (B,), and a seed for each."""

    unit: Unit
    rows: list[int]
    images: Tensor
    labels: Tensor
    seeds: list[int]

    def without(self, rows: Collection[int]) -> "Batch":
        """The batch without the images of these numbers."""
        index = torch.tensor([i for i, row in enumerate(self.rows) if row not in rows]).long()
        kept = index.to(self.images.device)
        return replace(
            self, rows=pick(self.rows, index), images=self.images[kept], labels=self.labels[kept],
            seeds=pick(self.seeds, index),
        )  # fmt: skip

    def records(
        self,
        attack: str,
        attacked: Tensor,
        *,
        frozen: Answers,
        unseen: Answers | None,
        stored: Answers,
        seconds: float,
        scores: Sequence[float | None],
    ) -> list[Record]:
        """One record per image: `attacked` (B, C, H, W) and the answers for it.

        Answers under the frozen draw, under unseen draws if the model draws, and for the images
        rounded to 8 bits; `seconds` per image, and log-likelihoods (B,).
        """
        change = (attacked - self.images).flatten(1)
        linf, l2 = change.abs().amax(1).tolist(), change.norm(dim=1).tolist()
        predictions = unseen.classes.tolist() if unseen else [[]] * len(linf)
        confidences = unseen.confidences.tolist() if unseen else [[]] * len(linf)
        return [
            Record(
                image=row, label=int(self.labels[i]), eps=self.unit.eps, attack=attack,
                frozen=int(frozen.classes[i, 0]),
                frozen_confidence=round(float(frozen.confidences[i, 0]), 4),
                predictions=tuple(predictions[i]),
                confidences=tuple(round(p, 4) for p in confidences[i]),
                linf=linf[i], l2=l2[i], seconds=round(seconds, 6), log_likelihood=scores[i],
                frozen_8_bit=int(stored.classes[i, 0]),
            )
            for i, row in enumerate(self.rows)
        ]  # fmt: skip
