"""Entries of a suite: one attack on one surrogate, and the images that it need not try."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from evaluation.attacks.ensembles import Attacked
from evaluation.results.records import Record


@dataclass(frozen=True)
class Entry:
    """One attack on one surrogate.

    `gradients` and `forwards`: the most passes that it needs per image and draw.
    `draws`: 1 for an attack on the frozen draw, more for one on means over so many draws.
    `stages`: names in the records of an ensemble, which gives the most harmful images after each.
    `judges`: whether answers of the surrogate are those of the defense, so that the attack may stop
        at a wrong one.
    `adversarial`: whether it searches for mistakes; corruptions do not, and are given all images.
    `redraws`: further forward passes of an attack on means, at most, where it takes new draws and
        judges its points anew.
    """

    surrogate: nn.Module
    attack: Callable[..., Tensor | Attacked]
    gradients: int
    forwards: int
    draws: int = 1
    stages: tuple[str, ...] = ()
    judges: bool = True
    adversarial: bool = True
    redraws: int = 0

    def on_means(self, draws: int) -> "Entry":
        """The same attack on means over so many draws."""
        return replace(self, draws=draws, forwards=self.forwards + self.redraws)

    def won(self, record: Record) -> bool:
        """True where the image of a record leaves this attack nothing to win.

        On the frozen draw a wrong answer is final; on means, wrong answers of all judging draws.
        """
        if not self.adversarial:
            return False
        return not record.right if self.draws == 1 else not record.share


def broken(entry: Entry, before: Iterable[Record]) -> dict[int, Record]:
    """Records by image after which an attack has nothing left to break, the first in `before`.

    `before`: records of the same images under attacks that came before, of this budget or smaller
    ones. The attack need not try these images: their worst case under its protocol is known.
    """
    found: dict[int, Record] = {}
    for record in before:
        if record.image not in found and entry.won(record):
            found[record.image] = record
    return found
