"""Attack the images of a data set unit by unit, so that a killed run continues.

Images are attacked in batches that depend on the settings alone, so that any number of processes,
and a run that was killed and started again, ends with the same records.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.answers import Answers, answers
from evaluation.attacks.eot import Expectation
from evaluation.attacks.norms import wide
from evaluation.attacks.rng import spawn
from evaluation.config import EvaluateConfig
from evaluation.defenses import build, default_transfer_model
from evaluation.gradient_modes import noises
from evaluation.results.records import CLEAN, Record, unique, worst
from evaluation.suites import run, suite
from rdc import Defense, ImageClassifier
from rdc.data import load
from rdc.runs.device import default_device
from rdc.runs.run_log import RunLog

T = TypeVar("T")

MOMENT = 2.0
"""Seconds; a measurement for the estimate that took longer is not repeated on more images."""


def make_accelerator() -> Accelerator:
    """This process's place among those of a run, which wait for each other as long as it takes."""
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    return Accelerator(cpu=default_device().type == "cpu", kwargs_handlers=[patience])


@dataclass(frozen=True)
class Unit:
    """Some images under one budget; eps 0 stands for the images as they are."""

    eps: float
    rows: range

    @property
    def name(self) -> str:
        return f"eps{self.eps:g}-{self.rows.start:05d}"


class Runner:
    """A defense, its attacks, the data, and the records so far."""

    def __init__(self, config: EvaluateConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.data = load(config.data, config.split).subset(slice(config.images))
        self.config = config
        self.model = self.fresh_model()
        sizes = config.suite.sizes(config.attack)
        self.sizes = sizes if noises(self.model) else replace(sizes, eot_samples=1)
        name = config.transfer or default_transfer_model(config.defense, config.data)
        transfer = None
        if name and config.attack == "adaptive":
            transfer = self._placed(ImageClassifier.from_pretrained(name))
        self.entries = suite(
            self.model, config.norm, self.sizes, attack=config.attack, transfer=transfer,
            only=config.suite.only,
        )  # fmt: skip
        # With what was left out: defaults may change, and a folder must not mix them.
        self.config = replace(
            config,
            suite=replace(config.suite, **asdict(self.sizes)),
            transfer=name if transfer else None,
        )
        self.max_rows = config.max_rows

    @cached_property
    def log(self) -> RunLog:
        """The records on disk. Only now the folder belongs to these settings."""
        settings = {**asdict(self.config), "out": None}
        return RunLog(self.config.out, settings, process=self.accelerator.process_index)

    def records(self) -> list[Record]:
        """The records of all processes so far."""
        return unique(map(Record.from_json, self.log.read()))

    def fresh_model(self) -> nn.Module:
        """The defense as new: one that has been attacked might remember it."""
        return self._placed(build(self.config.defense, data=self.config.data))

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.to(self.accelerator.device).eval()

    def units(self) -> list[Unit]:
        """All units of the run, in an order that every process knows."""
        count, size = len(self.data), self.config.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [Unit(eps, rows) for eps in (0.0, *self.config.eps) for rows in batches]

    def attacks(self, unit: Unit) -> list[str]:
        """Names in a unit's records."""
        if not unit.eps:
            return [CLEAN]
        return [stage for name, entry in self.entries.items() for stage in entry.stages or (name,)]

    def missing(self) -> list[Unit]:
        """This process's units that have no complete records yet."""
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.units()[index::count]
        return [unit for unit in self.incomplete() if unit in mine]

    def incomplete(self) -> list[Unit]:
        """All units that have no complete records yet."""
        known = {(r.eps, r.image, r.attack) for r in self.records()}

        def complete(unit: Unit) -> bool:
            return all(
                (unit.eps, row, attack) in known
                for row in unit.rows
                for attack in self.attacks(unit)
            )

        return [unit for unit in self.units() if not complete(unit)]

    def run(self, unit: Unit, *, announce: Callable[[str], object] = lambda attack: None) -> None:
        """Attack the images of a unit, judge what came out, and write it down.

        `announce` hears of every attack as it begins.
        """
        log = self.log  # refuses a folder of other settings before any work
        images, labels = self.images_and_labels(unit.rows)
        seeds = [spawn([self.config.seed], row)[0] for row in unit.rows]
        found: list[Record] = []
        most: dict[int, Record] = {}
        harmful = images.clone()
        for name, attacked, spent in self._attacked(unit, images, labels, seeds, announce):
            started = time.perf_counter()
            frozen = self._answers(attacked, seeds, draws=1)
            spent = spent if unit.eps else (time.perf_counter() - started) / len(images)
            unseen = None
            if self.sizes.eot_samples > 1:
                unseen = self._answers(attacked, seeds, draws=self.config.eval_draws)
            new = records(unit, name, labels, attacked - images, frozen, unseen, spent)
            most = worst([*most.values(), *new], lambda record: -standing(record))
            taken = torch.tensor([most[record.image] is record for record in new])
            harmful = torch.where(wide(taken).to(images.device), attacked, harmful)
            found += new
        self._save(unit, harmful, [record.attack for record in most.values()])
        log.append([record.to_json() for record in found])

    def images_and_labels(self, rows: range) -> tuple[Tensor, Tensor]:
        """Images and labels on the device."""
        part, device = self.data.subset(slice(rows.start, rows.stop)), self.accelerator.device
        return part.images.to(device), part.labels.to(device)

    def _attacked(
        self,
        unit: Unit,
        images: Tensor,
        labels: Tensor,
        seeds: list[int],
        announce: Callable[[str], object],
    ) -> Iterator[tuple[str, Tensor, float]]:
        """Name, images and seconds per image of every attack; an ensemble's stages share theirs."""
        if not unit.eps:
            yield CLEAN, images, 0.0
            return
        for name, entry in self.entries.items():
            announce(f"eps {unit.eps:g}, {name}")
            started = time.perf_counter()
            found = self._fitting(
                lambda max_rows, entry=entry: run(
                    entry, images, labels, eps=unit.eps, norm=self.config.norm, max_rows=max_rows,
                    seeds=seeds,
                )
            )  # fmt: skip
            spent = (time.perf_counter() - started) / len(images) / len(found)
            for stage, attacked in zip(entry.stages or (name,), found, strict=True):
                yield stage, attacked.detach(), spent

    def _answers(self, images: Tensor, seeds: list[int], *, draws: int) -> Answers:
        found = self._fitting(
            lambda max_rows: answers(self.model, images, seeds, draws=draws, max_rows=max_rows)
        )
        return Answers(*(values.cpu() for values in found))

    def _fitting(self, compute: Callable[[int], T]) -> T:
        """`compute` with as many rows at once as memory has room for."""
        while True:
            try:
                return compute(self.max_rows)
            except torch.OutOfMemoryError:
                if self.max_rows == 1:
                    raise
            # Out of the handler, whose traceback holds what the attempt had allocated.
            torch.cuda.empty_cache()
            self.max_rows //= 2

    def _save(self, unit: Unit, images: Tensor, culprits: list[str]) -> None:
        """The most harmful images of a unit, and purified; there in full or not at all."""
        tensors = {"images": images}
        if isinstance(self.model, Defense):
            tensors["purified"] = self._fitting(lambda max_rows: self._purified(images, max_rows))
        folder = self.config.out / "images"
        folder.mkdir(exist_ok=True)
        part = folder / f".{unit.name}.part"
        save_file(
            {name: values.cpu().contiguous() for name, values in tensors.items()}, part,
            metadata={"attacks": json.dumps(culprits)},
        )  # fmt: skip
        part.replace(folder / f"{unit.name}.safetensors")

    @torch.no_grad()
    def _purified(self, images: Tensor, max_rows: int) -> Tensor:
        assert isinstance(self.model, Defense)
        return torch.cat([self.model.purifier(part) for part in images.split(max_rows)])

    @cached_property
    def cost(self) -> dict[str, int]:
        """Model calls per image, over all attacks and budgets, at most."""
        entries, budgets = self.entries.values(), len(self.config.eps)
        answered = len(self.attacks(Unit(1.0, range(0)))) * self._answers_each
        return {
            "gradients": budgets * sum(entry.draws * entry.gradients for entry in entries),
            "forwards": budgets
            * (answered + sum(entry.draws * entry.forwards for entry in entries)),
        }

    @property
    def _answers_each(self) -> int:
        """Answers that judge an attacked image."""
        return 1 if self.sizes.eot_samples == 1 else 1 + self.config.eval_draws

    def estimate(self, units: list[Unit]) -> float:
        """Seconds for the units, by timing a gradient and a call of every model once."""
        images, labels = self.images_and_labels(range(min(self.config.batch_size, len(self.data))))

        def timed(model: nn.Module) -> list[float]:
            victim = Expectation(model, max_rows=self.max_rows)
            return [
                seconds_each(
                    lambda count, call=call: call(
                        images[:count], labels[:count], seeds=range(count)
                    ),
                    len(images),
                )
                for call in (victim.gradient, victim.evaluate)
            ]

        models = {entry.surrogate for entry in self.entries.values()} | {self.model}
        costs = {model: timed(model) for model in models}
        each = len(self.attacks(Unit(1.0, range(0)))) * self._answers_each * costs[self.model][1]
        for entry in self.entries.values():
            gradient, forward = costs[entry.surrogate]
            each += entry.draws * (entry.gradients * gradient + entry.forwards * forward)
        count = sum(len(unit.rows) for unit in units if unit.eps)
        return each * count


def records(
    unit: Unit,
    attack: str,
    labels: Tensor,
    change: Tensor,
    frozen: Answers,
    unseen: Answers | None,
    spent: float,
) -> list[Record]:
    """One record per image of a unit."""
    linf, l2 = change.flatten(1).abs().amax(1).tolist(), change.flatten(1).norm(dim=1).tolist()
    return [
        Record(
            image=row, label=int(labels[i]), eps=unit.eps, attack=attack,
            frozen=int(frozen.classes[i, 0]),
            frozen_confidence=round(float(frozen.confidences[i, 0]), 4),
            predictions=tuple(unseen.classes[i].tolist()) if unseen else (),
            confidences=tuple(round(p, 4) for p in unseen.confidences[i].tolist())
            if unseen else (),
            linf=linf[i], l2=l2[i], seconds=round(spent, 6),
        )
        for i, row in enumerate(unit.rows)
    ]  # fmt: skip


def standing(record: Record) -> int:
    """Answers that are right; among equals of unseen draws the frozen one decides."""
    return record.right + 2 * record.predictions.count(record.label)


def seconds_each(compute: Callable[[int], object], most: int) -> float:
    """Seconds per image of `compute(count)`, for `most` images or as many as take a `MOMENT`."""
    count = 1
    compute(count)  # the first call also pays for what is only done once
    while True:
        started = time.perf_counter()
        compute(count)
        spent = time.perf_counter() - started
        if spent > MOMENT or count == most:
            return spent / count
        count = min(2 * count, most)
