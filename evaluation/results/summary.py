"""The summary of a finished run, and `summary.json`, the file that holds it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from evaluation.checks.check import Check, failed, headline
from evaluation.eps import written
from evaluation.results.fields import (
    COUNT,
    NUMBER,
    OBJECT,
    SHARE,
    TEXT,
    list_of,
    object_of,
    one_of,
    optional,
    require_fields,
)
from evaluation.results.metrics import WORST, Accuracies, Accuracy, table
from evaluation.results.protocols import FROZEN, PROTOCOLS
from evaluation.results.records import CLEAN
from evaluation.suite_config import Threat
from rdc.config import read_json

SUMMARY = "summary.json"
PROVENANCE = {
    "command": TEXT, "commit": optional(TEXT), "data_fingerprint": TEXT, "python": TEXT,
    "packages": object_of(TEXT),
}  # fmt: skip
FIELDS = {
    "config": OBJECT, **PROVENANCE, "weights": object_of(TEXT),
    "calls_per_image": object_of(COUNT), "seconds_per_image": NUMBER,
    "class_names": list_of(TEXT), "norm": one_of(get_args(Threat)), "accuracy": OBJECT,
    "checks": list_of(OBJECT),
}  # fmt: skip
CONFIG = {"data": TEXT, "split": TEXT, "eps": list_of(NUMBER), "defense": OBJECT}
ACCURACY = {"accuracy": SHARE, "low": SHARE, "high": SHARE, "images": COUNT}


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
    def broken(self) -> list[str]:
        """The checks that failed."""
        return failed(self.checks)

    @property
    def failed(self) -> bool:
        return bool(self.broken)

    @property
    def text(self) -> str:
        """The state of the checks with what failed and why, and a table for the terminal."""
        reasons = [f"- {each.name}: {each.detail}" for each in self.checks if each.passed is False]
        said = [headline(self.checks), *(["\n".join(reasons)] if reasons else [])]
        return "\n\n".join([*said, table(self.accuracies, self.norm)])

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
                    attack: {name: accuracy_json(figure) for name, figure in by.items()}
                    for attack, by in attacks.items()
                }
                for eps, attacks in self.accuracies.items()
            },
            "checks": [asdict(check) for check in self.checks],
            "text": self.text,
        }

    @classmethod
    def from_json(cls, found: Any) -> "Summary":
        """The summary that `to_json` wrote.

        Raises:
            ValueError: names the first field that is missing or of another kind.
        """
        require_fields(found, FIELDS, "summary", others=True)
        require_fields(found["config"], CONFIG, "config", others=True)
        require_fields(found["config"]["defense"], {"kind": TEXT}, "config.defense", others=True)
        return cls(
            config=found["config"],
            provenance={name: found[name] for name in PROVENANCE},
            weights=found["weights"],
            class_names=tuple(found["class_names"]),
            norm=found["norm"],
            accuracies=_accuracies(found["accuracy"], found["config"]["eps"]),
            checks=tuple(map(Check.from_json, found["checks"])),
            calls_per_image=found["calls_per_image"],
            seconds_per_image=found["seconds_per_image"],
        )

    @classmethod
    def read(cls, file: Path) -> "Summary":
        """The summary that a file holds.

        Raises:
            ValueError: names the file, and the field and its value that are not of a summary.
        """
        try:
            return cls.from_json(read_json(file))
        except ValueError as error:
            raise ValueError(
                f"{file} is no summary of this version: {error}; start evaluation.evaluate again "
                "as before to write it anew"
            ) from error


def _accuracies(found: Mapping[str, Any], eps: Sequence[float]) -> Accuracies:
    """Accuracies by budget from those by its name, all of the same images and protocols."""
    # Before budgets were written as 8/255, they had six digits.
    budgets = {
        spell(budget): float(budget) for spell in (written, "{:g}".format) for budget in (0.0, *eps)
    }
    if unknown := found.keys() - budgets.keys():
        raise ValueError(f"accuracy: {min(unknown)!r} is no budget of config.eps={list(eps)}")
    accuracies = {budgets[name]: _of_budget(name, attacks) for name, attacks in found.items()}
    for budget in budgets.values():
        if (WORST if budget else CLEAN) not in accuracies.get(budget, {}):
            raise ValueError(f"accuracy: none of the worst case at eps {written(budget)}")
    clean = accuracies[0.0][CLEAN]
    if FROZEN not in clean or not clean.keys() <= PROTOCOLS.keys():
        raise ValueError(
            f"accuracy: protocols {list(clean)} at eps 0; give {FROZEN!r}, and no others than "
            f"{list(PROTOCOLS)}"
        )
    for attacks in accuracies.values():
        for attack, by in attacks.items():
            if by.keys() != clean.keys() or {a.images for a in by.values()} != {
                clean[FROZEN].images
            }:
                raise ValueError(f"accuracy: {attack!r} is of other images or protocols than clean")
    return accuracies


def _of_budget(eps: str, attacks: Any) -> dict[str, dict[str, Accuracy]]:
    """The accuracies of a budget, by attack and protocol."""
    found: dict[str, dict[str, Accuracy]] = {}
    if not object_of(OBJECT).fits(attacks):
        raise ValueError(f"accuracy: eps {eps}: not an object of attacks and their protocols")
    for attack, by in attacks.items():
        for protocol, share in by.items():
            require_fields(share, ACCURACY, f"accuracy: eps {eps}, {attack!r}, {protocol!r}")
            accuracy = Accuracy(share["accuracy"], share["low"], share["high"], share["images"])
            found.setdefault(attack, {})[protocol] = accuracy
    return found


def failed_checks(runs: Iterable[tuple[str, Summary]]) -> dict[str, list[str]]:
    """The checks that failed in runs, each a defense and its summary, by defense."""
    found: dict[str, list[str]] = {}
    for defense, summary in runs:
        if summary.failed:
            found[defense] = list(dict.fromkeys([*found.get(defense, []), *summary.broken]))
    return found


def accuracy_json(figure: Accuracy) -> dict[str, float]:
    return {
        "accuracy": figure.mean, "low": figure.low, "high": figure.high, "images": figure.images
    }  # fmt: skip
