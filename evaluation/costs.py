"""Costs of the attacks of a run: passes through the models, and the time that these take."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from torch import nn

from evaluation.attacks.eot import Expectation
from evaluation.batch import Batch
from evaluation.entries import Entry
from evaluation.results.records import CLEAN

GRADIENT = 3
"""Cost of a gradient, where a forward pass costs 1."""
SAME = 0.8
"""Time per image, as a share of that with a quarter of the images, from which on it is final."""

LONG = 5.0
"""Seconds of a call that are enough to tell: more images at once are not tried."""


class Costs:
    """Passes per image, at most, of every attack on `model`, and the seconds that they take.

    `judgments`: answers of `model` that judge an attacked image. `measured`: seconds per image of a
    forward pass of a model, or with True of a gradient, which several runs may share. Before they
    are measured, a forward pass takes 1 second and a gradient GRADIENT.
    """

    def __init__(
        self,
        model: nn.Module,
        entries: Mapping[str, Entry],
        *,
        judgments: int,
        measured: dict[tuple[nn.Module, bool], float],
    ) -> None:
        self.model, self.entries, self.judgments = model, entries, judgments
        self.measured = measured

    def passes(self, name: str) -> int:
        """Forward passes of an attack and of its judgments; gradients count as GRADIENT."""
        return int(self._total(name, lambda model, gradient: GRADIENT if gradient else 1))

    def seconds(self, name: str) -> float:
        """Time of these passes."""
        return self._total(name, self.pass_seconds)

    def _total(self, name: str, price: Callable[[nn.Module, bool], float]) -> float:
        """The sum over all passes; `price` of a gradient (True) or a forward pass of a model."""
        answer = self.judgments * price(self.model, False)
        if name == CLEAN:
            return answer
        entry = self.entries[name]
        gradients = entry.gradients * price(entry.surrogate, True)
        forwards = entry.forwards * price(entry.surrogate, False)
        return entry.draws * (gradients + forwards) + len(entry.stages or ("",)) * answer

    def per_image(self, budgets: int) -> dict[str, int]:
        """Calls of the models per image, over all attacks and budgets."""
        gradients = sum(self._total(name, lambda _, gradient: gradient) for name in self.entries)
        forwards = sum(self._total(name, lambda _, gradient: not gradient) for name in self.entries)
        return {"gradients": budgets * int(gradients), "forwards": budgets * int(forwards)}

    def pass_seconds(self, model: nn.Module, gradient: bool = False) -> float:
        """Seconds per image of a forward pass, or with `gradient` of a gradient."""
        return self.measured.get((model, gradient), GRADIENT if gradient else 1.0)

    def measure(self, names: Iterable[str], batch: Batch, *, max_rows: int) -> None:
        """Time the passes of some attacks on a batch."""
        entries = [self.entries[name] for name in names if name != CLEAN]
        wanted = [(self.model, False)]
        wanted += [(entry.surrogate, False) for entry in entries if entry.forwards]
        wanted += [(entry.surrogate, True) for entry in entries if entry.gradients]
        for model, gradient in wanted:
            if (model, gradient) not in self.measured:
                victim = Expectation(model, max_rows=max_rows)
                call = partial(pass_through, victim, batch, gradient=gradient)
                self.measured[model, gradient] = seconds_per_image(call, len(batch.rows))


def pass_through(victim: Expectation, batch: Batch, count: int, *, gradient: bool) -> None:
    """One pass of the first `count` images; waits for the device."""
    images, labels, seeds = batch.images[:count], batch.labels[:count], batch.seeds[:count]
    if gradient:
        victim.gradient(images, labels, seeds=seeds)[1].cpu()
    else:
        victim.evaluate(images, labels, seeds=seeds).margin.cpu()


def seconds_per_image(call: Callable[[int], object], most: int) -> float:
    """Seconds per image of a call with up to `most` images, tried with 1, 4, 16, ... of them."""
    call(1)  # the first call also loads kernels
    count, before = 1, float("inf")
    while True:
        started = time.perf_counter()
        call(count)
        found = (time.perf_counter() - started) / count
        if count == most or found > SAME * before or found * count > LONG:
            return found
        count, before = min(4 * count, most), found
