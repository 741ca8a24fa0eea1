"""Comparisons: runs on the same images, their paired tests, and settings that differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from evaluation.eps import eps_title
from evaluation.report.load import NORMS, Run, flatten
from evaluation.results.statistics import sign_test

SIGNIFICANT = 0.05
OWN = ("out", "defense.", "norm", "eps", "max_rows", "batch_size", "eval_draws")
"""Settings that may differ between runs that are compared: what is compared, and the machine."""


@dataclass(frozen=True)
class Group:
    """Runs on the same images."""

    runs: list[Run]

    @property
    def title(self) -> str:
        config = self.runs[0].config
        return f"{config['data']}, {config['split']} split, {self.images} images"

    @property
    def defenses(self) -> list[str]:
        return list(dict.fromkeys(run.defense for run in self.runs))

    @property
    def norms(self) -> list[str]:
        return [norm for norm in NORMS if any(run.norm == norm for run in self.runs)]

    @property
    def protocols(self) -> list[str]:
        """Those of the run that has most."""
        return max((run.protocols for run in self.runs), key=len)

    @property
    def images(self) -> int:
        return self.runs[0].images

    @property
    def columns(self) -> list[tuple[str, float]]:
        """Norms and, in them, budgets, 0 first."""
        return [(norm, eps) for norm in self.norms for eps in (0.0, *self.budgets(norm))]

    @property
    def draws(self) -> str:
        """The numbers of unseen draws that runs have, such as "5 or 20"."""
        return " or ".join(map(str, sorted({run.draws for run in self.runs if run.draws})))

    def rows(self, protocol: str) -> dict[str, dict[str, Run]]:
        """The runs that have a protocol, by defense and norm."""
        found: dict[str, dict[str, Run]] = {}
        for run in self.runs:
            if protocol in run.protocols:
                found.setdefault(run.defense, {})[run.norm] = run
        return found

    def of(self, norm: str) -> list[Run]:
        return [run for run in self.runs if run.norm == norm]

    def budgets(self, norm: str) -> list[float]:
        return sorted({eps for run in self.of(norm) for eps in run.budgets})


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs by the images they saw: pixels, labels, class names and their number.

    Models may have the same classes in another order.
    """
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.provenance["data_fingerprint"], frozenset(run.class_names), run.images)
        found.setdefault(key, []).append(run)
    return [Group(same) for same in found.values()]


@dataclass(frozen=True)
class Pair:
    """Two defenses on the same images under one budget: how many images only one gets right."""

    first: Run
    second: Run
    eps: float
    only_first: int
    only_second: int
    p: float

    @property
    def names(self) -> str:
        return f"{self.first.defense} : {self.second.defense}"

    @property
    def overlap(self) -> bool:
        """True if the two intervals have accuracies in common."""
        one, other = self.first.accuracy(self.eps), self.second.accuracy(self.eps)
        return one.low <= other.high and other.low <= one.high


def paired_tests(group: Group) -> list[Pair]:
    """McNemar's test for every two runs under one norm, and every budget that both have.

    Images as they are count as a budget. Runs whose checks failed are left out: their figures are
    not those of their defenses.
    """
    sound = [run for run in group.runs if not run.failed]
    return [
        pair(first, second, eps)
        for first, second in combinations(sound, 2)
        if first.norm == second.norm
        for eps in (0.0, *first.budgets)
        if eps in (0.0, *second.budgets)
    ]


def pair(first: Run, second: Run, eps: float) -> Pair:
    one, other = ({a.image: a.right for a in run.answers[eps]} for run in (first, second))
    if one.keys() != other.keys():
        raise ValueError(
            f"{first.name}, {second.name}: records of different images at {eps_title(eps)}"
        )
    only_first = sum(one[image] > other[image] for image in one)
    only_second = sum(one[image] < other[image] for image in one)
    return Pair(first, second, eps, only_first, only_second, sign_test(only_first, only_second))


def differences(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Settings and versions that are not the same in all runs: name, value, names of the runs."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        facts = dict(flatten(run.config))
        origin = run.provenance
        facts |= {"commit": origin["commit"], "python": origin["python"]}
        facts |= dict(flatten(origin["packages"]))
        facts |= {"draws that judge": run.draws} if run.draws else {}
        for name, value in facts.items():
            if not name.startswith(OWN):
                found.setdefault(name, {}).setdefault(json.dumps(value), []).append(run.name)
    return {name: values for name, values in found.items() if len(values) > 1}
