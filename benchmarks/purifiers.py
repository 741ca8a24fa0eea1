"""Robustness of purifiers under weak and strong attacks: `python -m benchmarks.purifiers`.

Purifiers in front of the packaged CNN on digits, under PGD with the exact gradient and with the
straight-through one that papers have used, both on frozen noise that the attacker knows. t* and the
weight of the guidance are chosen on validation images, by the worse of the two attacks; the table
is measured on test images. An hour on one CPU core; a killed run continues.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from evaluation.demo import pgd_evaluation
from evaluation.gradient_modes import surrogates
from evaluation.results.metrics import scores
from evaluation.results.protocols import FROZEN
from evaluation.results.statistics import clopper_pearson
from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import AGDM, GDMP, ContrastiveGuidance, Guidance
from rdc import Defense, Denoiser, ImageClassifier
from rdc.commands.program import run_program
from rdc.data import load
from rdc.images import to_x
from rdc.runs.atomic import write_json
from rdc.runs.provenance import provenance


@dataclass(frozen=True)
class BenchmarkConfig:
    """Images and attacks; the defaults are those of docs/purification.md."""

    out: Path = Path("results/purifiers.json")
    model: str = "digits"
    classifier: str = "digits-cnn"
    auxiliary: str = "digits-trades"
    """the network that guides AGDM"""
    eps: float = 0.15
    images: int = 100
    steps: int = 20
    """steps of PGD"""
    tuning_images: int = 50
    tuning_steps: int = 10
    copies: int = 4
    """purified copies of an image, whose mean probability counts"""
    process_steps: int = 10


T_STARS = (0.1, 0.15, 0.2)
WEIGHTS = {"gdmp": (0.5, 1.5, 5.0), "contrastive": (4.0, 16.0, 64.0), "agdm": (0.1, 0.3, 1.0)}


def main(config: BenchmarkConfig) -> None:
    """Choose on the validation split, measure on the test split, print both."""
    bench = Bench(config)
    alone = {
        "no purifier": bench.classifier,
        "no purifier, AGDM's guide instead of the CNN": bench.auxiliary,
    }
    for name, classifier in alone.items():
        bench.measure("test", name, classifier)
    t_star = bench.choose("t*", T_STARS, lambda t: bench.defense((), t))
    chosen = {"DiffPure": (f"t* = {t_star}", bench.defense((), t_star))}
    for method, weights in WEIGHTS.items():
        guided = partial(bench.guided, bench.term(method), t_star)
        weight = bench.choose(method, weights, guided)
        chosen[method] = (f"weight {weight:g}", guided(weight))
    print(
        f"\n| eps {config.eps:g}, first {config.images} test digits, PGD-{config.steps}, in % |"
        " chosen | clean | straight-through | exact | worst |\n|---|---|---|---|---|---|"
    )
    for name, classifier in alone.items():
        print(row(name, "", bench.measure("test", name, classifier)))
    for name, (setting, defense) in chosen.items():
        print(row(name, setting, bench.measure("test", name, defense)))


class Bench:
    """Networks, data, and the results so far."""

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        self.denoiser = Denoiser.from_pretrained(config.model)
        self.classifier = ImageClassifier.from_pretrained(config.classifier)
        self.auxiliary = ImageClassifier.from_pretrained(config.auxiliary)
        self.data = {
            "validation": load("digits", "validation").subset(slice(config.tuning_images)),
            "test": load("digits", "test").subset(slice(config.images)),
        }
        settings = json.loads(json.dumps(asdict(config), default=str))
        record = {"config": settings, **provenance(self.data["test"])}
        known = json.loads(config.out.read_text()) if config.out.exists() else record
        if known["config"] != settings:
            raise ValueError(f"--out {config.out} holds other settings; give another file")
        self.record = {**record, "results": known.get("results", {})}

    def term(self, method: str) -> Guidance:
        """The guidance of a method, with settings for 8x8 images."""
        if method == "gdmp":
            return GDMP(reference_batch=1)
        if method == "agdm":
            return AGDM(self.auxiliary)
        train = load("digits", "train").subset(slice(200))
        with torch.no_grad():
            bank = self.classifier(to_x(train.images))  # as the term sees the states
        return ContrastiveGuidance(self.classifier, bank=bank)

    def defense(
        self, guidance: list[tuple[float, Guidance]] | tuple[()], t_star: float, **options
    ) -> Defense:
        config = PurifierConfig("sde", t_star=t_star, steps=self.config.process_steps)
        purifier = DiffusionPurifier(self.denoiser, config, guidance=guidance, **options)
        return Defense(purifier, self.classifier, copies=self.config.copies)

    def guided(self, term: Guidance, t_star: float, weight: float) -> Defense:
        return self.defense([(weight, term)], t_star)

    def choose(self, name: str, values: tuple[float, ...], build: Callable) -> float:
        """The value under which most validation images survive; the smaller one of equals."""
        survivors = {
            value: self.measure("validation", f"{name} {value:g}", build(value))["worst"]
            for value in values
        }
        return max(values, key=lambda value: survivors[value])

    def measure(self, split: str, name: str, model: nn.Module) -> dict[str, float]:
        """Images that are classified correctly, clean and under the attacks; kept in the file."""
        results, key = self.record["results"], f"{split}: {name}"
        if key not in results:
            started = time.perf_counter()
            results[key] = self._attack(split, name, model)
            results[key]["seconds"] = round(time.perf_counter() - started, 1)
            write_json(self.config.out, self.record)
        print(key, results[key], flush=True)
        return results[key]

    def _attack(self, split: str, name: str, model: nn.Module) -> dict[str, float]:
        data = self.data[split]
        steps = self.config.steps if split == "test" else self.config.tuning_steps
        found = pgd_evaluation(
            model, data, name, eps=(self.config.eps,), steps=steps, through=compared(model),
            batch_size=25, show=True,
        )  # fmt: skip
        by_attack = [by for attacks in scores(found.records).values() for by in attacks.items()]
        return {
            **{name: int(sum(by[FROZEN])) for name, by in by_attack},
            "images": len(data),
        }


def compared(model: nn.Module) -> dict[str, nn.Module]:
    """The exact gradient, and for a purifier the identity in its place."""
    found = surrogates(model)
    if "bpda" not in found:
        return found
    return {"exact": found["exact"], "straight-through": found["bpda"]}


def row(name: str, setting: str, counts: dict[str, float]) -> str:
    """A line of the table, percentages with 95 % intervals."""
    cells = []
    for column in ("none", "straight-through", "exact", "worst"):
        if column not in counts:
            cells.append("")
            continue
        low, high = clopper_pearson(int(counts[column]), int(counts["images"]))
        share = 100 * counts[column] / counts["images"]
        cells.append(f"{share:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
    return " | ".join(["", name, setting, *cells, ""]).strip()


if __name__ == "__main__":
    sys.exit(run_program(main))
