"""Attacks on the images of a target, unit by unit and attack by attack, into a journal.

Units and random numbers depend on the settings alone: any number of processes, and a run that was
killed and started again, end with the same records.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from evaluation.answers import Answers, answers
from evaluation.attacks.eight_bits import rounded
from evaluation.attacks.rng import spawn
from evaluation.attacks.validation import check_budget
from evaluation.batch import Batch
from evaluation.config import Options
from evaluation.costs import Costs
from evaluation.detection import scores_of
from evaluation.entries import Entry, broken
from evaluation.eps import eps_title
from evaluation.gradient_modes import noises
from evaluation.journal import FolderJournal, History, Journal, Kept, MemoryJournal
from evaluation.progress import Progress, Task
from evaluation.results.records import CLEAN, Record, worst
from evaluation.suites import black_box, run, suite
from evaluation.target import Target
from evaluation.work_queue import Unit, units
from rdc import Defense

T = TypeVar("T")


class Runner:
    """The attacks of a suite on a target, and their records in a journal.

    `out`: folder of the journal; without one it is in memory. `process`: number of this process,
    whose records have a file of their own. `entries` in place of those of the suite.
    """

    def __init__(
        self,
        target: Target,
        options: Options,
        *,
        out: Path | None = None,
        process: int = 0,
        entries: dict[str, Entry] | None = None,
    ) -> None:
        self.target, self.out, self.process = target, out, process
        if options.norm != "corruption":
            check_budget(max(options.eps), options.norm, target.data.shape)
        sizes = options.suite.sizes(options.attack)
        self.sizes = sizes if noises(target.model) else replace(sizes, eot_samples=1)
        self.entries = entries or suite(
            target.model, options.norm, self.sizes, attack=options.attack,
            transfer=target.transfer, only=options.suite.only, through=target.surrogates,
        )  # fmt: skip
        # With what was left out: defaults may change, and a folder must not mix them.
        self.options = replace(options, suite=replace(options.suite, **asdict(self.sizes)))
        self.units = units(len(target.data), options.batch_size, options.eps)
        self.max_rows = options.max_rows
        judgments = 2 if self.sizes.eot_samples == 1 else 2 + options.eval_draws
        self.costs = Costs(
            target.model, self.entries, judgments=judgments, measured=target.pass_seconds
        )

    @property
    def name(self) -> str:
        return self.out.name if self.out else self.target.settings["defense"]["kind"]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, as the command line spells them."""
        return {**asdict(self.options), **self.target.settings, "out": None}

    @cached_property
    def journal(self) -> Journal:
        """The journal; from its first use on, its folder belongs to the settings."""
        if self.out is None:
            return MemoryJournal()
        inputs = self.target.inputs
        return FolderJournal(self.out, self.settings, inputs=inputs, process=self.process)

    @cached_property
    def history(self) -> History:
        return History(self.journal.records())

    def stages(self, unit: Unit) -> dict[str, tuple[str, ...]]:
        """The attacks on a unit, and the names of each in the records."""
        if not unit.eps:
            return {CLEAN: (CLEAN,)}
        return {name: entry.stages or (name,) for name, entry in self.entries.items()}

    def done(self, unit: Unit) -> list[Record]:
        """The records of the attacks that are complete on a unit."""
        return [
            record
            for stages in self.stages(unit).values()
            for record in self.history.complete(unit.eps, unit.rows, stages)
        ]

    def missing(self, unit: Unit) -> list[str]:
        """The attacks that have no complete records of a unit."""
        done = {record.attack for record in self.done(unit)}
        return [name for name, stages in self.stages(unit).items() if not done.issuperset(stages)]

    def smaller(self, unit: Unit) -> list[float]:
        """The budgets, ascending, whose broken images a unit leaves out."""
        if self.options.suite.every_attack:
            return []
        return sorted(eps for eps in self.options.eps if eps < unit.eps)

    def earlier(self, unit: Unit, until: str | None = None) -> list[Record]:
        """Records of smaller budgets on the images of a unit, of the attacks up to `until`.

        The units of the same images belong to one process: its own records are enough.
        """
        names = list(self.stages(unit))
        first = names if until is None else names[: names.index(until) + 1]
        stages = [stage for name in first for stage in self.stages(unit)[name]]
        return [r for eps in self.smaller(unit) for r in self.history.of(eps, unit.rows, stages)]

    def carried(self, unit: Unit) -> dict[int, Record]:
        """For each image that fell within a smaller budget, the record of its kept image."""
        if not (smaller := self.smaller(unit)):
            return {}
        before = replace(unit, eps=smaller[-1])
        most = worst([*self.carried(before).values(), *self.done(before)], harm)
        fell = {record.image for record in self.earlier(unit) if record.fell}
        return {image: record for image, record in most.items() if image in fell}

    def run(self, unit: Unit, progress: Progress) -> None:
        """Run the missing attacks on a unit; after each of them the journal knows what it found."""
        batch = self.batch(unit)
        done, most, harmful = self.begun(unit, batch.images)
        names = {record.attack for record in done}
        left = {n: s for n, s in self.stages(unit).items() if not names.issuperset(s)}
        for number, (name, stages) in enumerate(left.items(), 1):
            won = self.won(unit, name, done)
            part = batch.without(won)
            found = [r.not_tried(unit.eps, stage) for stage in stages for r in won.values()]
            models = [self.entries[name].surrogate] if unit.eps else [self.target.model]
            with progress.task(self.task(unit, name), *models):
                for stage, attacked, spent in self.attacked(part, name, stages):
                    new = self.judged(part, stage, attacked, spent)
                    most = worst([*most.values(), *new], harm)
                    harmful = harmful.clone()
                    for record, image in zip(new, attacked, strict=True):
                        if most[record.image] is record:
                            harmful[record.image - unit.rows.start] = image
                    found += new
            done = [*done, *found]
            attacks = tuple(record.attack for record in most.values())
            purified = self.purified(harmful) if number == len(left) else None
            self.journal.keep(unit.name, Kept(harmful, attacks, purified))
            self.journal.append(found)
            self.history.add(found)

    def begun(self, unit: Unit, images: Tensor) -> tuple[list[Record], dict[int, Record], Tensor]:
        """Records of the attacks done on a unit; the most harmful record of each image, if it has
        one; and the images (B, C, H, W) that these are about, otherwise the given ones.

        What fell within a smaller budget counts from the beginning, with its adversarial image.
        """
        carried = self.carried(unit)
        done, kept = self.done(unit), self.journal.kept(unit.name)
        most = worst([*carried.values(), *done], harm)
        if done and kept and kept.attacks == tuple(record.attack for record in most.values()):
            return done, most, kept.images.to(images)
        # Nothing is done, or a kill fell between the images and the records.
        if carried:
            index = [row - unit.rows.start for row in carried]
            before = self.journal.kept(replace(unit, eps=self.smaller(unit)[-1]).name)
            assert before is not None  # the images are written before the records
            images = images.clone()
            images[index] = before.images.to(images)[index]
        return [], carried, images

    def won(self, unit: Unit, name: str, before: list[Record]) -> dict[int, Record]:
        """Images that the attack need not try after `before`, with their reasons (see `broken`).

        Of smaller budgets, only this attack and those before it in the suite count, and of an
        ensemble no black box: gradients are still tried on what only a black box broke there, for
        "white box beats black box". And only images that rounding to 8 bits does not repair, which
        it does more often within a smaller budget.
        """
        if not unit.eps or self.options.suite.every_attack:
            return {}
        entry = self.entries[name]
        smaller = [
            record
            for record in self.earlier(unit, name)
            if record.frozen_8_bit != record.label
            and not (entry.stages and black_box(record.attack))
        ]
        return broken(entry, [*smaller, *before])

    def batch(self, unit: Unit) -> Batch:
        """The images of a unit on the model's device."""
        seeds = [spawn([self.options.seed], row)[0] for row in unit.rows]
        return Batch(unit, list(unit.rows), *self.target.part(unit.rows), seeds)

    def attacked(
        self, batch: Batch, name: str, stages: tuple[str, ...]
    ) -> Iterator[tuple[str, Tensor, float]]:
        """Name, images and seconds per image of each stage; an ensemble's stages share theirs."""
        if not batch.unit.eps:
            yield CLEAN, batch.images, 0.0
            return
        if not batch.rows:
            return
        started = time.perf_counter()
        found = self.fitting(
            lambda max_rows: run(
                self.entries[name], batch.images, batch.labels, eps=batch.unit.eps,
                norm=self.options.norm, max_rows=max_rows, seeds=batch.seeds,
                stop_when_wrong=not self.options.suite.every_attack,
                round=self.options.suite.round,
            )
        )  # fmt: skip
        spent = (time.perf_counter() - started) / len(batch.images) / len(found)
        for stage, attacked in zip(stages, found, strict=True):
            yield stage, attacked.detach(), spent

    def judged(self, batch: Batch, stage: str, attacked: Tensor, spent: float) -> list[Record]:
        """The records of attacked images, with the answers of the model for them."""
        started = time.perf_counter()
        frozen = self.answers(attacked, batch.seeds, draws=1)
        if not batch.unit.eps:
            spent = (time.perf_counter() - started) / len(attacked)
        unseen = None
        if self.sizes.eot_samples > 1:
            unseen = self.answers(attacked, batch.seeds, draws=self.options.eval_draws)
        stored = self.answers(rounded(attacked), batch.seeds, draws=1)
        scores = self.fitting(lambda rows: scores_of(self.target.model, attacked, max_rows=rows))
        return batch.records(
            stage, attacked, frozen=frozen, unseen=unseen, stored=stored, seconds=spent,
            scores=scores,
        )  # fmt: skip

    def answers(self, images: Tensor, seeds: list[int], *, draws: int) -> Answers:
        return self.fitting(
            lambda max_rows: answers(
                self.target.model, images, seeds, draws=draws, max_rows=max_rows
            )
        )

    @torch.no_grad()
    def purified(self, images: Tensor) -> Tensor | None:
        """The images after the defense's purifier; None for a model without one."""
        model = self.target.model
        if not isinstance(model, Defense):
            return None
        return self.fitting(
            lambda max_rows: torch.cat([model.purifier(part) for part in images.split(max_rows)])
        )

    def fitting(self, compute: Callable[[int], T]) -> T:
        """Result of `compute` with as many rows at once as memory has room for."""
        while True:
            try:
                return compute(self.max_rows)
            except torch.OutOfMemoryError:
                if self.max_rows == 1:
                    raise
            # Out of the handler, whose traceback holds what the attempt had allocated.
            torch.cuda.empty_cache()
            self.max_rows //= 2

    def measure_passes(self) -> None:
        """Time the passes of the missing attacks, for the estimate of the time that is left."""
        names = {name for unit in self.units for name in self.missing(unit)}
        if names:
            batch = self.batch(self.units[0])
            self.fitting(lambda rows: self.costs.measure(names, batch, max_rows=rows))

    def task(self, unit: Unit, name: str) -> Task:
        """An attack on a unit with its passes and their time."""
        count = len(unit.rows)
        place = f"{eps_title(unit.eps)}, images {unit.rows.start + 1}-{unit.rows.stop}"
        passes, seconds = self.costs.passes(name), self.costs.seconds(name)
        return Task(self.name, place, name, float(passes * count), seconds * count)

    def tasks(self, unit: Unit) -> list[Task]:
        """The missing attacks on a unit."""
        return [self.task(unit, name) for name in self.missing(unit)]


def harm(record: Record) -> int:
    """Minus the number of right answers; the frozen draw decides between equal unseen ones."""
    return -(record.right + 2 * record.predictions.count(record.label))
