"""The summary of a finished run, and `summary.json`, the file that holds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.checks.check import Check, headline
from evaluation.eps import written
from evaluation.results.metrics import WORST, Accuracies, Accuracy, table
from evaluation.results.protocols import FROZEN
from evaluation.results.records import CLEAN

SUMMARY = "summary.json"
PROVENANCE = ("command", "commit", "data_fingerprint", "python", "packages")


@dataclass(frozen=True)
class Summary:
    """The figures of a run, and all that is needed to repeat it.

    `config`: its settings by name, as JSON has them. `provenance`: see `rdc.runs.provenance`.
    `weights`: SHA-256 of the weights of each model, by name.
    `calls_per_image`: gradients and forward passes of all attacks and budgets together, at most.
    `seconds_per_image`: time of one answer.
    """

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    weights: Mapping[str, str]
    class_names: tuple[str, ...]
    norm: str
    accuracies: Accuracies
    checks: tuple[Check, ...]
    calls_per_image: Mapping[str, int]
    seconds_per_image: float

    @property
    def budgets(self) -> list[float]:
        """The budgets, ascending, without the 0 of images as they are."""
        return sorted(eps for eps in self.accuracies if eps)

    @property
    def protocols(self) -> list[str]:
        return list(self.accuracies[0.0][CLEAN])

    @property
    def images(self) -> int:
        return self.accuracy(0.0).images

    def accuracy(self, eps: float, attack: str = WORST, protocol: str = FROZEN) -> Accuracy:
        """The accuracy under an attack within a budget; at eps 0 the clean one, whatever `attack`.

        Raises:
            KeyError: the run has no such budget, attack or protocol.
        """
        return self.accuracies[eps][attack if eps else CLEAN][protocol]

    @property
    def text(self) -> str:
        """The state of the checks, and a table for the terminal."""
        return f"{headline(self.checks)}\n\n{table(self.accuracies, self.norm)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "config": dict(self.config),
            **self.provenance,
            "weights": dict(self.weights),
            "calls_per_image": dict(self.calls_per_image),
            "seconds_per_image": self.seconds_per_image,
            "class_names": list(self.class_names),
            "norm": self.norm,
            "accuracy": {
                written(eps): {
                    attack: {name: _share(figure) for name, figure in by.items()}
                    for attack, by in attacks.items()
                }
                for eps, attacks in self.accuracies.items()
            },
            "checks": [asdict(check) for check in self.checks],
            "text": self.text,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Summary":
        """The summary that `to_json` wrote; KeyError, TypeError or ValueError for anything else."""
        # Before budgets were written as 8/255, they had six digits.
        budgets = {
            spell(eps): float(eps)
            for spell in (written, "{:g}".format)
            for eps in (0.0, *found["config"]["eps"])
        }
        accuracies = {
            budgets[eps]: {
                attack: {name: _accuracy(share) for name, share in by.items()}
                for attack, by in attacks.items()
            }
            for eps, attacks in found["accuracy"].items()
        }
        if FROZEN not in accuracies[0.0][CLEAN]:
            raise ValueError("no accuracy under the frozen draw")
        return cls(
            config=found["config"],
            provenance={name: found[name] for name in PROVENANCE},
            weights=found["weights"],
            class_names=tuple(map(str, found["class_names"])),
            norm=found["norm"],
            accuracies=accuracies,
            checks=tuple(Check(**check) for check in found["checks"]),
            calls_per_image=found["calls_per_image"],
            seconds_per_image=found["seconds_per_image"],
        )

    @classmethod
    def read(cls, file: Path) -> "Summary":
        """
        Raises:
            ValueError: names the file, where it is not what `to_json` writes.
        """
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{file} is no summary of this version ({type(error).__name__}: {error}); start "
                "evaluation.evaluate again as before to write it anew"
            ) from error


def _share(figure: Accuracy) -> dict[str, float]:
    return {
        "accuracy": figure.mean, "low": figure.low, "high": figure.high, "images": figure.images
    }  # fmt: skip


def _accuracy(share: Mapping[str, Any]) -> Accuracy:
    mean, low, high = (float(share[key]) for key in ("accuracy", "low", "high"))
    if not all(0 <= value <= 1 for value in (mean, low, high)):
        raise ValueError(f"accuracy {mean} [{low}, {high}] is not in [0, 1]")
    return Accuracy(mean, low, high, int(share["images"]))
