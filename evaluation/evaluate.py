"""Attack a defence and keep what happened to every image:
`accelerate launch -m evaluation.evaluate --out results/rdc --defense.kind rdc --eps 0.1 0.2`.

Images are attacked in batches that depend on the settings alone, so that any number of processes,
and a run that was killed and started again, ends with the same records.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import tqdm
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.attacks.expectation import Expectation
from evaluation.attacks.seeds import spawn
from evaluation.defenses import DefenseConfig, build
from evaluation.protocols import predictions
from evaluation.records import Record, Records
from evaluation.suites import SuiteConfig, run, suite
from evaluation.summary import summarize
from rdc.data import Dataset, Split, load
from rdc.provenance import provenance

NONE = "none"


@dataclass(frozen=True)
class EvaluateConfig:
    """One defence, one norm, some budgets."""

    out: Path
    """folder for the records, the attacked images and `summary.json`"""
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    data: str = "digits"
    split: Split = "test"
    images: int = 100
    """how many, from the start of the split"""
    norm: Literal["linf", "l2", "stadv"] = "linf"
    eps: tuple[float, ...] = (0.1,)
    """budgets on the [0, 1] scale; for stadv, of the displacement (see `attacks.stadv`)"""
    judged: int = 20
    """draws that judge an image where the suite has several"""
    batch_size: int = 50
    chunk: int = 256
    """rows in the networks at once; halved where memory is short"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "judged", "batch_size", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if not self.eps or min(self.eps) <= 0 or len(set(self.eps)) < len(self.eps):
            raise ValueError(
                f"--eps {self.eps}: give one or more different positive budgets; clean images are "
                "measured anyway"
            )


@dataclass(frozen=True)
class Unit:
    """Some images under one budget; eps 0 stands for the images as they are."""

    eps: float
    rows: range

    @property
    def name(self) -> str:
        return f"eps{self.eps:g}-{self.rows.start:05d}"


class Evaluation:
    """A defence, its attacks, the data, and the records so far."""

    def __init__(self, config: EvaluateConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.data = load(config.data, config.split).subset(slice(config.images))
        self.model = build(config.defense, data=config.data).to(accelerator.device).eval()
        self.entries = suite(self.model, config.norm, config.suite)
        self.records = Records(
            config.out, {**asdict(config), "out": None}, process=accelerator.process_index
        )
        self.chunk = config.chunk

    def units(self) -> list[Unit]:
        """All units of the run, in an order that every process knows."""
        count, size = len(self.data), self.config.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [Unit(eps, rows) for eps in (0.0, *self.config.eps) for rows in batches]

    def attacks(self, unit: Unit) -> list[str]:
        return list(self.entries) if unit.eps else [NONE]

    def missing(self) -> list[Unit]:
        """This process's units that have no complete records yet."""
        known = {(r["eps"], r["image"], r["attack"]) for r in self.records.read()}

        def complete(unit: Unit) -> bool:
            return all(
                (unit.eps, row, attack) in known
                for row in unit.rows
                for attack in self.attacks(unit)
            )

        mine = self.units()[self.accelerator.process_index :: self.accelerator.num_processes]
        return [unit for unit in mine if not complete(unit)]

    def run(self, unit: Unit) -> None:
        """Attack the images of a unit, judge what came out, and write it down."""
        part = self._part(unit)
        images, labels = part
        seeds = [spawn([self.config.seed], row)[0] for row in unit.rows]
        found, worst, survivors = [], images, torch.full((len(images),), torch.inf)
        for name in self.attacks(unit):
            started = time.perf_counter()
            attacked = images if name == NONE else self._attack(name, images, labels, unit, seeds)
            seconds = (time.perf_counter() - started) / len(images)
            predicted = self._judge(attacked, seeds)
            right = (predicted == labels.cpu()[:, None]).double().mean(1)
            fewer = (right < survivors)[:, None, None, None].to(images.device)
            worst, survivors = torch.where(fewer, attacked, worst), right.minimum(survivors)
            found += self._records(unit, name, images, attacked, labels, predicted, seconds)
        self._save(unit, worst)
        self.records.append(found)

    def _part(self, unit: Unit) -> tuple[Tensor, Tensor]:
        part: Dataset = self.data.subset(slice(unit.rows.start, unit.rows.stop))
        device = self.accelerator.device
        return part.images.to(device), part.labels.to(device)

    def _attack(
        self, name: str, images: Tensor, labels: Tensor, unit: Unit, seeds: list[int]
    ) -> Tensor:
        """The attacked images; with fewer rows at once where memory is short."""
        while True:
            try:
                return run(
                    self.entries[name], images, labels, eps=unit.eps, norm=self.config.norm,
                    draws=self.config.suite.draws, chunk=self.chunk, seeds=seeds,
                ).detach()  # fmt: skip
            except torch.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                torch.cuda.empty_cache()
                self.chunk //= 2

    def _judge(self, images: Tensor, seeds: list[int]) -> Tensor:
        draws = 1 if self.config.suite.draws == 1 else self.config.judged
        return predictions(self.model, images, seeds, draws=draws, chunk=self.chunk).cpu()

    def _records(self, unit, name, images, attacked, labels, predicted, seconds) -> list[Record]:
        change = (attacked - images).flatten(1)
        linf, l2 = change.abs().amax(1).tolist(), change.norm(dim=1).tolist()
        return [
            {
                "image": row, "label": int(labels[i]), "eps": unit.eps, "attack": name,
                "predictions": predicted[i].tolist(), "linf": linf[i], "l2": l2[i],
                "seconds": round(seconds, 4),
            }
            for i, row in enumerate(unit.rows)
        ]  # fmt: skip

    def _save(self, unit: Unit, images: Tensor) -> None:
        """The most harmful images of a unit, there in full or not at all."""
        folder = self.config.out / "images"
        folder.mkdir(exist_ok=True)
        part = folder / f".{unit.name}.{os.getpid()}"
        save_file({"images": images.cpu().contiguous()}, part)
        part.replace(folder / f"{unit.name}.safetensors")

    @cached_property
    def cost(self) -> dict[str, int]:
        """Model calls per image, over all attacks and budgets."""
        draws, budgets = self.config.suite.draws, len(self.config.eps)
        entries = self.entries.values()
        return {
            "gradients": budgets * draws * sum(entry.gradients for entry in entries),
            "forwards": budgets * draws * sum(entry.forwards for entry in entries),
        }

    def estimate(self, units: list[Unit]) -> float:
        """Seconds for the units, by timing one gradient and one call of a few images each."""
        images, labels = self._part(Unit(0.0, range(min(8, len(self.data)))))
        seeds = list(range(len(images)))
        total = 0.0
        timed: dict[nn.Module, tuple[float, float]] = {}
        for entry in self.entries.values():
            if entry.surrogate not in timed:
                victim = Expectation(entry.surrogate, chunk=self.chunk)
                timed[entry.surrogate] = (
                    seconds(lambda v=victim: v.gradient(images, labels, seeds=seeds)),
                    seconds(lambda v=victim: v.judge(images, labels, seeds=seeds)),
                )
            gradient, forward = timed[entry.surrogate]
            total += entry.gradients * gradient + entry.forwards * forward
        count = sum(len(unit.rows) for unit in units if unit.eps)
        return total * self.config.suite.draws * count / len(images)


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main(config: EvaluateConfig) -> None:
    """Run what is missing, then summarize."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    evaluation = Evaluation(config, accelerator)
    units = evaluation.missing()
    cost = evaluation.cost
    if units:
        accelerator.print(
            f"{len(evaluation.data)} images, {len(evaluation.entries)} attacks, eps {config.eps}: "
            f"{cost['gradients']:,} gradients and {cost['forwards']:,} calls per image, about "
            f"{evaluation.estimate(units) / 60:.1f} minutes here"
        )
    with tqdm(total=sum(len(unit.rows) for unit in units), unit="image") as bar:
        for unit in units:
            evaluation.run(unit)
            bar.update(len(unit.rows))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        summary = {
            "config": asdict(config),
            **provenance(evaluation.data),
            "calls_per_image": cost,
            **summarize(evaluation.records.read(), norm=config.norm),
        }
        part = config.out / ".summary.json"
        part.write_text(json.dumps(summary, indent=2, default=str) + "\n")
        part.replace(config.out / "summary.json")
        print(summary["text"])
        print(f"wrote {config.out / 'summary.json'}")
    accelerator.end_training()


if __name__ == "__main__":
    main(tyro.cli(EvaluateConfig))
